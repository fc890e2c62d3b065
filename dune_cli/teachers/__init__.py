"""One file a teacher: a file `name.py` that defines `load(weights, device, dtype) -> Teacher` adds one ("_" -> "-").

`DEFAULT_WEIGHTS` in it, a literal, names what is loaded where the user names no file; it is read without importing the
file, so that missing weights are reported before torch is imported. Example: docs/adding/teacher.md.
"""
