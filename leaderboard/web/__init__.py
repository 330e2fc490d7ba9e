"""The leaderboard elsewhere: one HTML file for a browser, and tables and pictures for Weights & Biases."""
