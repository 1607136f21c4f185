"""Where a session runs: the device asked for, CUDA libraries, threads."""
