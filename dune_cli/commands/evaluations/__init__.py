"""The benchmarks of `dune eval`, one file each."""
