"""Guesses of what a photo shows of a known scene, and the pose that most of them agree with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.geometry import pair_checks, pnp, poses
from dune_cli.geometry.cameras import project
from dune_cli.geometry.pose_confidence import KNOWN_POINTS_DEG, NO_EVIDENCE, Evidence, spread_of
from dune_cli.geometry.pose_covariance import RefinedPose, refine_absolute_pose
from dune_cli.tasks.reloc.solve import MIN_CONFIDENCE, PNP_THRESHOLD_PX

MIN_INLIERS = 12
SECOND_ITERATIONS = 1000  # of the search for a second pose
FOCAL_FACTORS = np.geomspace(0.5, 2.5, 9)  # on a guessed focal length


@dataclass(frozen=True)
class LocateConfig:
    """`min_confidence` of a pose that is given out; `threshold` of an inlier in pixels of the matched photo; `seed` of
    the random sampling."""

    min_confidence: float = MIN_CONFIDENCE
    threshold: float = PNP_THRESHOLD_PX
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """Guesses of what the query shows, H of them: `keypoint` (H,) which of its `count` matched keypoints, at `pixels`
    (H, 2) of its pinhole camera, would be `points_world` (H, 3), which `observations` (H,) map images see, by its match
    with map image `image` (H,). `unit_px`: pixels that count as one. `shifts` (H, M, 3): where the points go with
    the map's modes (None: it says nothing of its calibration)."""

    keypoint: np.ndarray
    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    image: np.ndarray
    unit_px: float
    shifts: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        points_world: np.ndarray,
        image: np.ndarray,
        unit_px: float,
        observations: np.ndarray | None = None,
        shifts: np.ndarray | None = None,
    ) -> Seen:
        """Guesses less than half a unit apart are of one keypoint. Without `observations` (H,) all are seen alike."""
        keypoint = np.unique(np.rint(2 * pixels / unit_px).astype(np.int64), axis=0, return_inverse=True)[1].ravel()
        observations = np.ones(len(pixels), dtype=np.int64) if observations is None else observations
        return cls(keypoint, pixels, points_world, observations, image, unit_px, shifts)

    @property
    def count(self) -> int:
        return int(self.keypoint.max(initial=-1)) + 1


@dataclass(frozen=True)
class Found:
    """A pose and the guesses that are `agreeing` (H,) with it, of `keypoints` different ones of the query; their median
    `distance` and root mean square error."""

    pose: RefinedPose
    agreeing: np.ndarray
    keypoints: int
    distance: float
    error_px: float


def solve(seen: Seen, K: np.ndarray, focal_unknown: bool, config: LocateConfig, focal_sd: float = 0.0) -> Found | None:
    """The pose that most guesses agree with, refined on one guess a keypoint: the one that most map images see.
    `focal_sd`: of K's focal length, a share of it, where it is known."""
    threshold_px = config.threshold * seen.unit_px
    starts = []
    for factor in FOCAL_FACTORS if focal_unknown else (1.0,):
        K_start = np.column_stack([K[:, :2] * factor, K[:, 2]]) if focal_unknown else K
        pose = pnp.estimate_absolute_pose(seen.points_world, seen.pixels, K_start, threshold_px, config.seed)
        if pose is not None:
            starts.append((int(pose.inliers.sum()), -pose.reprojection_error_px, K_start, pose))
    if not starts:
        return None
    _, _, K, start = max(starts, key=lambda entry: entry[:2])
    cam_from_world, agreeing, refined = start.cam_from_world, start.inliers, None
    for _ in range(3):
        kept = _one_each(seen, agreeing)
        shifts = None if seen.shifts is None else seen.shifts[kept]
        refined = refine_absolute_pose(
            seen.points_world[kept], seen.pixels[kept], K, cam_from_world, threshold_px, focal_unknown, shifts, focal_sd
        )
        if refined is None:
            return None
        K, cam_from_world = refined.K, refined.cam_from_world
        points_cam = poses.transform_points(cam_from_world, seen.points_world)
        errors = np.linalg.norm(project(points_cam, K) - seen.pixels, axis=1)
        before, agreeing = agreeing, (points_cam[:, 2] > 0) & (errors < threshold_px)
        if np.array_equal(before, agreeing):
            break
    distance = float(np.median(np.linalg.norm(points_cam[agreeing], axis=1))) if agreeing.any() else 1.0
    keypoints = len(np.unique(seen.keypoint[agreeing]))
    near = refined.errors_px[refined.errors_px < threshold_px]
    return Found(refined, agreeing, keypoints, distance, float(np.sqrt(np.mean(near**2))))


def _one_each(seen: Seen, agreeing: np.ndarray) -> np.ndarray:
    """Indices of one agreeing guess a keypoint; copies of one measurement would make the pose look surer than it is."""
    index = np.flatnonzero(agreeing)
    order = index[np.argsort(-seen.observations[index], kind="stable")]
    return order[np.unique(seen.keypoint[order], return_index=True)[1]]


def evidence_of(
    seen: Seen, found: Found | None, size: tuple[int, int], focal_unknown: bool, config: LocateConfig, tries: int = 1
) -> Evidence:
    """What a pose rests on, for `confidence_of`. `tries`: how many copies of the photo were looked at."""
    chance = log10_chance(seen, found, size, focal_unknown, config.threshold) + float(np.log10(tries))
    if found is None or not np.isfinite(chance):
        return NO_EVIDENCE
    # guesses of keypoints that agree are no second opinion
    rest = ~np.isin(seen.keypoint, seen.keypoint[found.agreeing])
    other = None
    if np.count_nonzero(rest) >= MIN_INLIERS:
        threshold_px = config.threshold * seen.unit_px
        other = pnp.estimate_absolute_pose(
            seen.points_world[rest], seen.pixels[rest], found.pose.K, threshold_px, config.seed, SECOND_ITERATIONS
        )
    second = 0 if other is None else len(np.unique(seen.keypoint[rest][other.inliers]))
    covariance = found.pose.covariance
    return Evidence(
        log10_chance=chance,
        share=found.keypoints / seen.count,
        spread=spread_of(seen.pixels[found.agreeing], size),
        second=second / found.keypoints,
        scatter_deg=float(np.degrees(np.sqrt(np.trace(covariance[:3, :3])))),
        parallax_deg=KNOWN_POINTS_DEG,
    )


def log10_chance(
    seen: Seen, found: Found | None, size: tuple[int, int], focal_unknown: bool, threshold: float
) -> float:
    """As `log10_chance_pnp`, a keypoint with several guesses having as many chances, and every focal length tried.

    Random pixels are taken to lie where the agreeing ones do, not all over the photo: a camera far off sees the whole
    scene in one spot, and agrees with whatever matches lie there.
    """
    if found is None or found.keypoints < MIN_INLIERS:
        return float("inf")
    spread = np.linalg.det(np.cov(seen.pixels[found.agreeing].T))
    area = min(float(size[0] * size[1]), 12 * float(np.sqrt(max(spread, 0.0))))  # of the rectangle with that spread
    threshold_px = threshold * seen.unit_px * np.sqrt(len(seen.pixels) / seen.count)
    if area < 1:
        return float("inf")
    tries = np.log10(len(FOCAL_FACTORS)) if focal_unknown else 0.0
    return float(pair_checks.log10_chance_pnp(found.keypoints, seen.count, threshold_px, (area, 1.0)) + tries)
