"""A second implementation of the core in plain Python: slow, row by row, sharing no code with it."""
