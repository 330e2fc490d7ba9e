"""What is known of a grid before a cell is trained: its rows, how far each cell is, its faults, and what it costs."""
