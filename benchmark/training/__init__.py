"""Training under masks: the loop, masks in force, scores, the optimiser, precision."""
