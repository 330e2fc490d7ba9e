"""The leaderboard: records of finished runs, and the sheets made from them.

A record is one JSON file per finished run, written once and never edited; a sheet is a pure function of the records.
"""

from __future__ import annotations

from leaderboard.board.sheet import rebuild, render
from leaderboard.store.records import Problem, find_same, read_record, read_records, write_record
from leaderboard.store.schema import Record, RecordError, UnreadableError, find_faults

__all__ = [
    "Problem",
    "Record",
    "RecordError",
    "UnreadableError",
    "find_faults",
    "find_same",
    "read_record",
    "read_records",
    "rebuild",
    "render",
    "write_record",
]
