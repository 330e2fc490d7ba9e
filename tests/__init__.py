"""Tests, in rooms that mirror those of the code; what they share is in `harness`."""
