"""The leaderboard sheet, and the command that rebuilds every sheet."""
