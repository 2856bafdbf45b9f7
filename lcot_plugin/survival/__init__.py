"""Runs that survive: whole checkpoints, signals, records that are read back without running code."""
