"""Whether one row is better than another: finding the runs that were meant, judging them, and saying it."""
