"""Whether known poses fit the matches of the photos."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import VerifiedPairs

LEAST_SHARE = 0.3  # of the matches of verified pairs, that are points in space; of many photos, tracks of two are none
NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def known_pose_notes(
    model: SfmModel,
    correspondences: Correspondences,
    verified: VerifiedPairs,
    known: Collection[int],
) -> tuple[str, ...]:
    """A warning where the verified matches of the `known` photos do not meet in space.

    Poses in the wrong direction, or of other photos, still give points: along a line of cameras most matches of a pair
    meet somewhere, but those of other pairs elsewhere.
    """
    matches = points = 0
    for pair in verified.geometry:
        if pair[0] in known and pair[1] in known:
            rows = np.asarray(verified.geometry[pair].inlier_matches)
            seen = []
            for index, keypoints in zip(pair, rows.T):
                point_of = np.full(len(correspondences.keypoints[index]), -1 - index)
                point, keypoint = model.observations.get(index, NOTHING)
                point_of[keypoint] = point
                seen.append(point_of[keypoints])
            matches, points = matches + len(rows), points + int(np.count_nonzero(seen[0] == seen[1]))
    if points >= LEAST_SHARE * matches:
        return ()
    return (
        f"the known poses contradict the photos: only {points / matches:.0%} of the matches are points in space; check "
        "that --poses are world_from_cam and of these photos, or give --pose-use prior",
    )
