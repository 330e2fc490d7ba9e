"""The sheet docs/scale.md: what the paper's tables cost on many GPUs, from predictions and stated assumptions."""
