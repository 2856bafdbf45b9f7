"""The kinds of answers, one module each: readers of gold answers and comparisons with what completions state."""
