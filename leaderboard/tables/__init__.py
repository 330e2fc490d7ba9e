"""Rows, tables and statistics of records."""
