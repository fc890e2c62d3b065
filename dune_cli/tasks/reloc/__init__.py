"""The pose of one photo's camera relative to another's: `sight.py` matches, `solve.py` finds it, `files.py` says it."""
