"""Data sets: read or streamed, decoded once, split once for all methods, and served as batches."""
