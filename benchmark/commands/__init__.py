"""What the command line is made of besides `benchmark.cli`: further commands, shared options, errors and lists."""
