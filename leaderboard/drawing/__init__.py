"""Pictures: which a section has and the numbers in them (standard library), and their drawing (matplotlib)."""
