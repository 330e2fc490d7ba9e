"""Sheets made from predictions: the paper's printed costs recounted, its tables on many GPUs, deviations."""
