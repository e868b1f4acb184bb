"""Kernels in loops over tensors: loop orders, streams of calls, and what runs them."""
