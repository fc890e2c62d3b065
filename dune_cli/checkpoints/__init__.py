"""The registry, downloading, and the only place that opens weight files."""
