"""The leaderboard page, and the command that rebuilds every page."""
