"""The rewards, one function each, and the registry that finds them by their specs."""
