"""Scripts that the Python of vLLM's environment runs: standard library only, Python 3.10+."""
