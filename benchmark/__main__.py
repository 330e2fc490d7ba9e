"""`sparse-bench`, which is `python -m benchmark`: Ctrl-C ends it in one line, also while torch is being imported."""

from __future__ import annotations

import signal

from benchmark.stopping import leave_at_once, take_ctrl_c


def main() -> None:
    """Run the command line."""
    take_ctrl_c(signal.default_int_handler, leave_at_once)
    from benchmark.cli import main as run  # half a second

    run()


if __name__ == "__main__":
    main()
