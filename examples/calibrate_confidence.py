"""Fits the confidence of a pose (dune_cli/geometry/pose_confidence.py) on photo pairs with true poses.

    python examples/calibrate_confidence.py ROOT --matcher sift,xfeat-lighterglue

ROOT holds pairs.json files as `dune eval pairs` reads them, and, at any depth, cameras.json of posed sequences
({"frames": [{"file", "K", "world_from_cam"}]}), of which pairs with rotations from 0 to 180 degrees are drawn. Each
pair is also taken with a wrong lens: a focal length of 0.6 or 1.6 times the true one, or barrel distortion.
Prints the weights, and the share within 10 degrees by confidence on scenes that were left out of the fit. The weights
in the code came from 77 pairs with wide baselines, 15 easy ones, and 141 of 13 sequences, a temple among them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from dune_cli.errors import UserError
from dune_cli.evaluation import pairs as benchmark
from dune_cli.geometry import epipolar, poses
from dune_cli.geometry.pose_confidence import MAX_LOG10_NFA
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import Matches
from dune_cli.matchers.registry import load_matcher
from dune_cli.sfm.relative_pose import CameraImage, MatcherBackend, SolverConfig, TwoViewMatches, relocalize

SIGNS = np.array([1, 1, 1, -1, -1, 1])  # of the weights: what makes a pose surer, and what does not
ANGLES_DEG = (8, 16, 30, 50, 90)
PAIRS_AN_ANGLE = 2
WRONG_LENS_WEIGHT = 0.15
BARREL = 0.25  # at the corners
RIDGE = 0.5
LOWERED = 0.5  # the intercept, for scenes unlike these


def pairs_below(root: Path, seed: int) -> list[benchmark.PosedPair]:
    """Those of pairs.json files, and pairs of posed sequences."""
    try:
        found = benchmark.read_pairs(root)
    except UserError:
        found = []
    rng = np.random.default_rng(seed)
    for file in sorted(root.rglob("cameras.json")):
        frames = [frame for frame in json.loads(file.read_text())["frames"] if frame.get("world_from_cam")]
        placed = [np.array(frame["world_from_cam"]) for frame in frames]
        drawn: dict[int, int] = {}
        for i, j in rng.permutation(list(itertools.combinations(range(len(frames)), 2)) or np.zeros((0, 2), int)):
            motion = poses.inverse(placed[j]) @ placed[i]
            angle = int(np.digitize(np.degrees(poses.rotation_angle(motion)), ANGLES_DEG))
            drawn[angle] = drawn.get(angle, 0) + 1
            if drawn[angle] <= PAIRS_AN_ANGLE:
                one, two = frames[i], frames[j]
                photos = file.parent / one["file"], file.parent / two["file"]
                Ks = np.array(one["K"]), np.array(two["K"])
                found.append(benchmark.PosedPair("sequences", f"{i}-{j}", *photos, *Ks, motion))
    return found


def with_wrong_lens(common: TwoViewMatches, kind: int) -> TwoViewMatches:
    """0, 1: focal lengths 0.6 and 1.6 times the true ones; 2: barrel distortion."""
    if kind < 2:
        zoom = np.diag([(0.6, 1.6)[kind]] * 2 + [1.0])
        first, second = (
            replace(shot, K=np.column_stack([(shot.K @ zoom)[:, :2], shot.K[:, 2]]))
            for shot in (common.reference, common.query)
        )
        return replace(common, reference=first, query=second)

    def bent(points: np.ndarray, shot: CameraImage) -> np.ndarray:
        centre, radius = shot.K[:2, 2], np.hypot(*shot.size) / 2
        square = (((points - centre) / radius) ** 2).sum(1, keepdims=True)
        return centre + (points - centre) * (1 - BARREL * square)

    matches: Matches = common.matches
    ends = bent(matches.points1, common.reference), bent(matches.points2, common.query)
    return replace(common, matches=replace(matches, points1=ends[0], points2=ends[1]))


def rows_of(pairs: list[benchmark.PosedPair], matcher: str) -> list[tuple[str, bool, bool, np.ndarray]]:
    """(scene, whether the lens is true, whether the pose is within 10 degrees, features) of poses beyond chance."""
    backend = MatcherBackend(load_matcher(matcher))
    rows = []
    for pair in pairs:
        shots = [
            CameraImage(read_photo(path), K, "given") for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))
        ]
        right = backend.match(*(backend.extract(shot) for shot in shots))
        for common in (right, with_wrong_lens(right, sum(pair.id.encode()) % 3)):
            found = relocalize(common, SolverConfig("essential", min_confidence=-1.0))
            evidence = found.evidence
            if found.query_from_ref is None or evidence is None or evidence.log10_nfa > MAX_LOG10_NFA:
                continue
            error = np.degrees(max(map(float, epipolar.pose_error(found.query_from_ref, pair.cam2_from_cam1))))
            rows.append(
                (pair.image1.parent.name.rstrip("_0123456789"), common is right, error < 10, evidence.features())
            )
    return rows


def fit(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Logistic regression with the signs held, on standardised features; the intercept as it is."""
    mean, spread = X.mean(0), X.std(0) + 1e-9
    Z = (X - mean) / spread

    def loss(b: np.ndarray) -> float:
        z = b[0] + Z @ b[1:]
        return float((weight * np.where(y, np.logaddexp(0, -z), np.logaddexp(0, z))).sum() + RIDGE * (b[1:] ** 2).sum())

    bounds = [(None, None)] + [(0, None) if sign > 0 else (None, 0) for sign in SIGNS]
    b = minimize(loss, np.zeros(len(SIGNS) + 1), method="L-BFGS-B", bounds=bounds).x
    return float(b[0] - (b[1:] / spread * mean).sum()), b[1:] / spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="+", type=Path)
    parser.add_argument("--matcher", default="sift,xfeat-lighterglue")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    pairs = [pair for root in words.root for pair in pairs_below(root, words.seed)]
    rows = [row for matcher in words.matcher.split(",") for row in rows_of(pairs, matcher)]
    scene, true_lens, y = (np.array([row[k] for row in rows]) for k in range(3))
    X, weight = np.stack([row[3] for row in rows]), np.where(true_lens, 1.0, WRONG_LENS_WEIGHT)
    left_out = np.zeros(len(rows))
    for name in np.unique(scene):
        own = scene == name
        b, w = fit(X[~own], y[~own], weight[~own])
        left_out[own] = 1 / (1 + np.exp(-(b - LOWERED + X[own] @ w)))
    b, w = fit(X, y, weight)
    print(
        f"{len(rows)} poses of {len(pairs)} pairs; INTERCEPT = {b - LOWERED:.3f}, WEIGHTS = {np.round(w, 3).tolist()}"
    )
    for low, high in (*itertools.pairwise(benchmark.CONFIDENCE_BINS), (0.9, 1.0)):
        use = true_lens & (left_out >= low) & (left_out < high)
        share = y[use].mean() if use.any() else 0.0
        print(f"  {low:.2f} to {high:.2f}: {int(use.sum())} poses, {share:.2f} of them within 10 degrees")


if __name__ == "__main__":
    main()
