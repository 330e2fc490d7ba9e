"""Pruning plasticity (Liu et al., 2021, arXiv:2106.10404, Section 3): its page, made from records of branches alone."""
