"""One file a teacher. A file `name.py` that defines `load(argument, device, dtype)` adds a teacher ("_" → "-")."""
