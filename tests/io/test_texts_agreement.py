"""How many matches agree, in words."""

from __future__ import annotations

import pytest

from dune_cli.io.safe_read import agreement


@pytest.mark.parametrize(
    ("matches", "inliers", "words"),
    [
        (0, 0, "no match"),
        (1, 0, "1 match, too few of which agree on a pose"),
        (12, 0, "12 matches, too few of which agree on a pose"),
        (12, 5, "12 matches, of which 5 agree on a pose"),
    ],
)
def test_agreement(matches: int, inliers: int, words: str) -> None:
    assert agreement(matches, inliers, "a pose") == words
