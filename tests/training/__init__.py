"""Tests of data, networks and training."""
