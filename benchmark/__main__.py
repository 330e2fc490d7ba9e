"""`sparse-bench`, which is `python -m benchmark`: Ctrl-C ends it in one line, also while torch is being imported."""

from benchmark.cli.ctrl_c import guard_imports


def main() -> None:
    """Run the command line."""
    guard_imports()
    from benchmark.cli.app import main as run  # half a second

    run()


if __name__ == "__main__":
    main()
