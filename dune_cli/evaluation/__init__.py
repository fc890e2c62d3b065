"""One file a benchmark, and the metrics they share."""
