"""What is asked for: pages, methods, cells and grids of them."""
