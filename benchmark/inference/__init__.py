"""Speed and size of a finished run."""
