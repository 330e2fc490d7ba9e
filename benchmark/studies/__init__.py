"""Studies: runs that together answer a question."""
