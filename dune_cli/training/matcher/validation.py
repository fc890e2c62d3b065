"""How good a matcher is on held-out training scenes: the pose error of pairs whose poses are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.geometry.epipolar import estimate_relative_pose, pose_error
from dune_cli.io.photos import read_photo
from dune_cli.matchers.base import FeatureMatcher, Features
from dune_cli.training.matcher.sequences import RealPair

LEAST_TURN_DEG = 15.0  # between the views: nearer ones are easy for all
THRESHOLD_PX = 1.0  # of MAGSAC, in pixels of the matched image, as `dune eval pairs` has it


@dataclass(frozen=True)
class Score:
    """errors_deg (N,): the larger of a pair's rotation and translation-direction error, 180 for no pose."""

    errors_deg: np.ndarray
    matches: float
    seconds_a_pair: float


def choose(pairs: Sequence[RealPair], per_scene: int) -> list[RealPair]:
    """Held-out pairs with known poses and wide baselines: some of each scene, evenly over its turns."""
    chosen = []
    for scene in dict.fromkeys(pair.scene for pair in pairs):
        wide = [p for p in pairs if p.scene == scene and p.held_out and p.K0 is not None]
        wide = sorted((p for p in wide if p.turn_deg >= LEAST_TURN_DEG), key=lambda p: p.turn_deg)
        places = np.unique(np.linspace(0, len(wide) - 1, per_scene).round().astype(int)) if wide else []
        chosen += [wide[place] for place in places]
    return chosen


def score(matcher: FeatureMatcher, pairs: Sequence[RealPair], seed: int) -> Score:
    """Pose errors of a matcher on `choose`n pairs; each photo is looked at once. Seconds are those of matching alone
    plus the photo's share."""
    features: dict[str, Features] = {}
    errors, counts, seconds = [], [], 0.0
    for pair in pairs:
        for path in pair.photos:
            if str(path) not in features:
                rgb = read_photo(path).rgb
                began = time.process_time()
                features[str(path)] = matcher.extract(rgb)
                seconds += time.process_time() - began
        began = time.process_time()
        found = matcher.match_features(*(features[str(path)] for path in pair.photos))
        seconds += time.process_time() - began
        thresholds = (THRESHOLD_PX * found.pixel_size1, THRESHOLD_PX * found.pixel_size2)
        pose = estimate_relative_pose(found.points1, found.points2, pair.K0, pair.K1, thresholds, seed)
        error = 180.0
        if pose is not None:
            error = float(np.degrees(max(pose_error(pose.cam2_from_cam1, pair.cam1_from_cam0))))
        errors.append(error)
        counts.append(len(found.scores))
    return Score(np.array(errors), float(np.median(counts)), seconds / max(len(pairs), 1))
