"""The number of matches and of those that agree, as text."""

from __future__ import annotations

import pytest

from dune_cli.sfm.matching import match_counts_text


@pytest.mark.parametrize(
    ("matches", "inliers", "words"),
    [
        (0, 0, "no match"),
        (1, 0, "1 match, too few of which agree on a pose"),
        (12, 0, "12 matches, too few of which agree on a pose"),
        (12, 5, "12 matches, of which 5 agree on a pose"),
    ],
)
def test_match_counts_as_text(matches: int, inliers: int, words: str) -> None:
    assert match_counts_text(matches, inliers, "a pose") == words
