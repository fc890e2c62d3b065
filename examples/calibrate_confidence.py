"""Fits the confidence of a pose (dune_cli/geometry/pose_confidence.py) on photo pairs with true poses.

    python examples/calibrate_confidence.py ROOT --matcher sift,xfeat-lighterglue

ROOT holds pairs.json files of `dune eval pairs` and, at any depth, cameras.json files of posed sequences
({"frames": [{"file", "K", "world_from_cam"}]}), of which pairs with rotations from 0 to 180 degrees are drawn. Each
pair is also used with a wrong camera: a focal length of 0.6 or 1.6 times the true one, or barrel distortion.
Prints the weights, and by confidence the share of poses within 10 degrees on scenes left out of the fit. The weights in
the code are those of 77 pairs with wide baselines, 15 easy ones, and 141 of 13 sequences.
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

SIGNS = np.array([1, 1, 1, -1, -1, 1])  # of the weights: whether evidence raises or lowers the confidence
ANGLE_BINS_DEG = (8, 16, 30, 50, 90)
PAIRS_PER_ANGLE = 2
WRONG_CAMERA_WEIGHT = 0.15
BARREL = 0.25  # relative shift at the corners
RIDGE = 0.5
INTERCEPT_MARGIN = 0.5  # subtracted from the intercept, for scenes unlike these


def find_pairs(root: Path, seed: int) -> list[benchmark.PosedPair]:
    """The pairs of pairs.json files, and pairs of posed sequences."""
    try:
        pairs = benchmark.read_pairs(root)
    except UserError:
        pairs = []
    rng = np.random.default_rng(seed)
    for file in sorted(root.rglob("cameras.json")):
        frames = [frame for frame in json.loads(file.read_text())["frames"] if frame.get("world_from_cam")]
        world_from_cam = [np.array(frame["world_from_cam"]) for frame in frames]
        drawn: dict[int, int] = {}
        for i, j in rng.permutation(list(itertools.combinations(range(len(frames)), 2)) or np.zeros((0, 2), int)):
            cam2_from_cam1 = poses.inverse(world_from_cam[j]) @ world_from_cam[i]
            angle = int(np.digitize(np.degrees(poses.rotation_angle(cam2_from_cam1)), ANGLE_BINS_DEG))
            drawn[angle] = drawn.get(angle, 0) + 1
            if drawn[angle] <= PAIRS_PER_ANGLE:
                photos = [file.parent / frames[k]["file"] for k in (i, j)]
                Ks = [np.array(frames[k]["K"]) for k in (i, j)]
                pairs.append(benchmark.PosedPair("sequences", f"{i}-{j}", *photos, *Ks, cam2_from_cam1))
    return pairs


def with_wrong_camera(matches: TwoViewMatches, kind: int) -> TwoViewMatches:
    """0, 1: focal lengths 0.6 and 1.6 times the true ones; 2: barrel distortion."""
    if kind < 2:
        zoom = np.diag([(0.6, 1.6)[kind]] * 2 + [1.0])
        reference, query = (
            replace(image, K=np.column_stack([(image.K @ zoom)[:, :2], image.K[:, 2]]))
            for image in (matches.reference, matches.query)
        )
        return replace(matches, reference=reference, query=query)

    def distort(points: np.ndarray, image: CameraImage) -> np.ndarray:
        centre, radius = image.K[:2, 2], np.hypot(*image.size) / 2
        radius2 = (((points - centre) / radius) ** 2).sum(1, keepdims=True)
        return centre + (points - centre) * (1 - BARREL * radius2)

    points: Matches = matches.matches
    points1, points2 = distort(points.points1, matches.reference), distort(points.points2, matches.query)
    return replace(matches, matches=replace(points, points1=points1, points2=points2))


def rows_of(pairs: list[benchmark.PosedPair], matcher: str) -> list[tuple[str, bool, bool, np.ndarray]]:
    """(scene, whether the camera is true, whether the pose is within 10 degrees, evidence) of significant poses."""
    backend = MatcherBackend(load_matcher(matcher))
    rows = []
    for pair in pairs:
        images = [
            CameraImage(read_photo(path), K, "given") for path, K in ((pair.image1, pair.K1), (pair.image2, pair.K2))
        ]
        with_true_camera = backend.match(*(backend.extract(image) for image in images))
        for matches in (with_true_camera, with_wrong_camera(with_true_camera, sum(pair.id.encode()) % 3)):
            result = relocalize(matches, SolverConfig("essential", min_confidence=-1.0))
            evidence = result.evidence
            if result.query_from_ref is None or evidence is None or evidence.log10_nfa > MAX_LOG10_NFA:
                continue
            error = np.degrees(max(map(float, epipolar.pose_error(result.query_from_ref, pair.cam2_from_cam1))))
            scene = pair.image1.parent.name.rstrip("_0123456789")
            rows.append((scene, matches is with_true_camera, error < 10, evidence.features()))
    return rows


def fit(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """(intercept, weights) of logistic regression with weights of fixed signs, for features as they are."""
    mean, std = X.mean(0), X.std(0) + 1e-9
    Z = (X - mean) / std

    def loss(b: np.ndarray) -> float:
        z = b[0] + Z @ b[1:]
        return float((weight * np.where(y, np.logaddexp(0, -z), np.logaddexp(0, z))).sum() + RIDGE * (b[1:] ** 2).sum())

    bounds = [(None, None)] + [(0, None) if sign > 0 else (None, 0) for sign in SIGNS]
    b = minimize(loss, np.zeros(len(SIGNS) + 1), method="L-BFGS-B", bounds=bounds).x
    return float(b[0] - (b[1:] / std * mean).sum()), b[1:] / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="+", type=Path)
    parser.add_argument("--matcher", default="sift,xfeat-lighterglue")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pairs = [pair for root in options.root for pair in find_pairs(root, options.seed)]
    rows = [row for matcher in options.matcher.split(",") for row in rows_of(pairs, matcher)]
    scene, true_camera, y = (np.array([row[k] for row in rows]) for k in range(3))
    X, weight = np.stack([row[3] for row in rows]), np.where(true_camera, 1.0, WRONG_CAMERA_WEIGHT)
    left_out = np.zeros(len(rows))
    for name in np.unique(scene):
        own = scene == name
        b, w = fit(X[~own], y[~own], weight[~own])
        left_out[own] = 1 / (1 + np.exp(-(b - INTERCEPT_MARGIN + X[own] @ w)))
    b, w = fit(X, y, weight)
    weights = np.round(w, 3).tolist()
    print(f"{len(rows)} poses of {len(pairs)} pairs; INTERCEPT = {b - INTERCEPT_MARGIN:.3f}, WEIGHTS = {weights}")
    for low, high in (*itertools.pairwise(benchmark.CONFIDENCE_BINS), (0.9, 1.0)):
        use = true_camera & (left_out >= low) & (left_out < high)
        share = y[use].mean() if use.any() else 0.0
        print(f"  {low:.2f} to {high:.2f}: {int(use.sum())} poses, {share:.2f} of them within 10 degrees")


if __name__ == "__main__":
    main()
