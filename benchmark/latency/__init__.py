"""`sparse-bench latency`: what a finished run's sparsity is worth on this machine, by engines timed side by side."""
