"""The results in short."""
