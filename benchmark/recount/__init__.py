"""Sheets made from the code: the paper's printed costs recounted, and deviations."""
