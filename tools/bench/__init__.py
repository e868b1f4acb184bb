"""Benchmarks of kernels and layers beside their peers: `python -m tools.bench --help`."""
