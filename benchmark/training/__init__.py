"""Training under masks: the loop, the masks, scores, the optimiser, precision."""
