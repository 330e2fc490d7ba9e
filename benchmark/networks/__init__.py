"""Networks: those of the GraNet paper, narrower ones of any backbone, and which of their weights are pruned."""
