"""Two photos to a 3-D scene, by matches (`matches.py`) or by a two-view model (`pointmap.py`); one result type."""
