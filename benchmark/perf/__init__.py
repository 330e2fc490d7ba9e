"""The project's own speed, measured against goals."""
