"""The leaderboard for a browser and for Weights & Biases."""
