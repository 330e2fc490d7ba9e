"""Running a grid to its end: cell after cell, by several workers, each cell held by one of them."""
