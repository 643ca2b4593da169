"""Benchmarks: which there are, how their rows are read, and whether training prompts contain them."""
