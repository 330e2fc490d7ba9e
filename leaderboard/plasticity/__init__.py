"""Pruning plasticity, from the records of branches."""
