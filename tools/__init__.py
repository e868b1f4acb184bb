"""Developer tools around jitgen (benchmarks and the like); nothing here is imported by jitgen."""
