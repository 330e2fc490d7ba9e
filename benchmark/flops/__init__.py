"""The sheet docs/flops.md: the printed FLOPs of the paper's ImageNet table, recounted without ImageNet."""
