"""Kernels as files: ELF objects, libraries, headers."""
