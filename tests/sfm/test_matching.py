"""The number of matches and of those that agree, as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli import runtime
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.cameras import share_cameras
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.matching import match_counts_text, match_pairs
from dune_cli.sfm.verification import verify_pairs
from support.many_photos import HEIGHT, WIDTH, K, picture, write


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


def test_two_threads_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, range(3))
    own = [PhotoCamera.of_matrix(K, "given", WIDTH, HEIGHT)] * 3
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(runtime, "available_threads", lambda threads=threads: threads)
        cache = WorkFolder(tmp_path / str(threads))
        matcher = Sift(WIDTH, 800)
        images = extract_features(paths, matcher, cache)
        correspondences = match_pairs(images, [(0, 1), (0, 2), (1, 2)], matcher, cache)
        verified = verify_pairs(correspondences, share_cameras(own), 0, lambda index: Thumbnail.of(picture(index)))
        inliers = {pair: np.asarray(pose.inlier_matches).tolist() for pair, pose in verified.geometry.items()}
        found.append((cache.counts, inliers, verified.counts, verified.confidence))
    assert found[0] == found[1] and len(found[0][1]) == 3
    assert found[0][0] == {"photos": 3, "features": 3, "features, found": 6, "matches": 3}
