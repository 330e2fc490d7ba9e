"""The results in short: what was run, what it cost, what agrees with the paper, what a reader may not conclude."""
