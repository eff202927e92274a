"""Measurements of the product, each runnable alone, on servers of its own: `python -m benchmarks.<name> --json`."""
