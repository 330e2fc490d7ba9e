"""Tests of records, tables, pages and pictures."""
