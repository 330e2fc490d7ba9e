"""Tests of grids, plans, sweeps and workers."""
