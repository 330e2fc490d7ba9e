"""Networks: how they are built, which weights can be pruned, what a pass costs."""
