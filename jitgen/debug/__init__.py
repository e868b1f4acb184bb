"""Names for profilers and debuggers."""
