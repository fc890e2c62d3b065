"""Folders of any size in shards: `--shards` of `dune encode`, `depth`, `segment`, `human` and `predict`."""
