"""Records and measurements: their rules, their seal, how they are written and read."""
