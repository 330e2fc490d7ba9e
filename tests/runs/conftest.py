"""Fixtures of the tests of runs."""

from tests.harness.bench import bench

__all__ = ["bench"]
