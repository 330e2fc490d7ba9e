"""`make perf`: what speed the suite promises, measured. Each module here with a `measure` adds its goals."""
