"""The command line: `sparse-bench run | sweep | export | verify | latency | slim | methods | pages | check ...`."""
