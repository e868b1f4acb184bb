"""The one kernel, batch-reduce GEMM: what is asked for, how it is tiled, its code, its call."""
