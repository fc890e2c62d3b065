"""One file a verb: parse, load, predict, write, report. Only this room and `cli.py` know Click."""
