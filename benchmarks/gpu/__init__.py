"""What training costs on a GPU: `python benchmarks/gpu/run.py`."""
