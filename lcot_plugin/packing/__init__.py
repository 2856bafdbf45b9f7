"""Many examples of any length in one row: which go together, how the row is built, what attends to what."""
