"""Whether one row of the leaderboard is better than another."""
