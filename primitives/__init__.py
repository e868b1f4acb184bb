"""Deep-learning primitives as loops around one kernel (Georganas et al., arXiv:1906.06440)."""
