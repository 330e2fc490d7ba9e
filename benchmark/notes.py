"""Small JSON files that processes leave for each other, each replaced as a whole; no result hangs on them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole. It outlives the process, not a power cut: it is not forced onto the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the content of such a file, or None where there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content
