"""What runs code: the CPU, executable memory, caches, teams of threads, scratch memory."""
