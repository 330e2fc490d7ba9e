"""The seal of a record: a checksum of its content, kept with it.

It tells that a record was edited or damaged after it was written. It does not tell who wrote the record, nor whether
its numbers are true: whoever edits a number can compute the seal anew. Against that stand `sparse-bench verify`, which
measures a record's figures again, and the history of the repository, where records are only ever added.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

UNSEALED = ("seal", "file")  # what is said of a record, not by it: its checksum and the name of its file


def seal_of(record: dict[str, Any]) -> str:
    """Return the seal of a record: the SHA-256, 64 hex digits, of its content as canonical JSON.

    Raises TypeError, ValueError or RecursionError for what is not plain JSON, NaN and infinities included. Invariant:
    records of the same content have the same seal, whatever the order of their keys or the layout of their file.
    """
    return hashlib.sha256(canonical(content_of(record)).encode("ascii")).hexdigest()


def lay_out(record: dict[str, Any]) -> str:
    """Return the text of the file of a record, its seal included, for people, `git diff` and `is_sealed_text`.

    It is the canonical JSON with a line for every value, indented by one space for each level.
    """
    text = json.dumps(record, indent=1, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text + "\n"


def is_sealed_text(data: bytes, seal: str) -> bool:
    """Return whether a file as `lay_out` writes it has the content that `seal`, of 64 hex digits, was made from.

    Much quicker than to write the numbers anew: the canonical JSON is the file without its line breaks, indents and
    seal (a JSON text has no line break within). False for any other layout, of which nothing is known by that.
    """
    lines = data.replace(f'\n "seal":"{seal}",'.encode("ascii"), b"", 1).split(b"\n")
    return hashlib.sha256(b"".join(map(bytes.lstrip, lines))).hexdigest() == seal


def content_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record without its seal and the name of its file."""
    return {key: value for key, value in record.items() if key not in UNSEALED}


def canonical(value: Any) -> str:
    """Return `value` as the one JSON text of its content: keys sorted, no spaces, ASCII.

    A float is written as the shortest decimal that reads back as the same float, the same on every platform and in
    every version of Python from 3.1 on; so the text, and the seal with it, survives writing and reading.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
