"""One file a benchmark, and speed."""
