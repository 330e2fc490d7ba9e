"""Who handles Ctrl-C, and when. It imports almost nothing, because it comes before all other imports."""

from __future__ import annotations

import os
import signal


def leave_at_once(number: int, frame: object) -> None:
    """Handle Ctrl-C while a command starts or ends: nothing is under way, and an interrupted import
    would print a long traceback."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # the launcher reports for its ranks
        os.write(2, b"error: stopped\n")
    os._exit(130)


def guard_imports() -> None:
    """Have Ctrl-C end this process at once, until `allow_cleanup`; a foreign handler stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)


def allow_cleanup() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again, since there may be something to clean up from here on."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
