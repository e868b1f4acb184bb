"""Kernels for the eye: listings, meanings, comparison."""
