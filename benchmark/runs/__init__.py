"""One run from start to record, what it leaves, and what starts from it."""
