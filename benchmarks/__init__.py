"""What this package is measured by; scripts, each run by itself. Results in results/."""
