"""`python -m benchmark` is the `sparse-bench` command."""

from benchmark.cli import main

main()
