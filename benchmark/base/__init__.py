"""What every room stands on: errors, files, the machine, the console."""
