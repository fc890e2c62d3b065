"""Shards: the results of many photos in few files, and the manifest of the photos.

The files are described in docs/file-formats.md, "dune.shards/1".
"""
