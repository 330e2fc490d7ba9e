"""Tests of speed and size of finished runs."""
