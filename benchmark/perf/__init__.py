"""The suite's own speed, measured against goals."""
