"""One file a teacher. Adding a file `name.py` that defines `load(argument, device, dtype)` adds a teacher ("_" → "-")."""
