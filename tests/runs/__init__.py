"""Tests of single runs and of branches."""
