"""Tests of methods and their vocabulary."""
