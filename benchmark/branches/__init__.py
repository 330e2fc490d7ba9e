"""Branches: runs that go on from a snapshot of another run, and the study of pruning plasticity made of them."""
