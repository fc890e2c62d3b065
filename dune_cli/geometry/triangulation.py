"""Triangulation of one view's points from its matches with other views whose poses are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli import optional

MIN_ANGLE_DEG = 1.5  # between the rays of a point; as in COLMAP


@dataclass(frozen=True)
class ViewObservations:
    """Another view's observations: `rows` (M,) of the first view's pixels, at `pixels` (M, 2); its pinhole `K` (3, 3),
    `cam_from_world` (4, 4), and `pixel_size`, its pixels per matched pixel."""

    rows: np.ndarray
    pixels: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    pixel_size: float


@dataclass(frozen=True)
class TriangulatedPoints:
    """Points P and their tracks. `rows` (P,): the point's row of the first view's pixels. `points_world` (P, 3).
    `observations` (P,): the number of views that see it, the first one included. `tracks` (Q, 2): point and view (0 the
    first, then the others in their order) of every observation, the points ascending, at `track_pixels` (Q, 2)."""

    rows: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    tracks: np.ndarray
    track_pixels: np.ndarray


def triangulate_with_known_poses(
    pixels: np.ndarray,
    K: np.ndarray,
    cam_from_world: np.ndarray,
    pixel_size: float,
    others: Sequence[ViewObservations],
    threshold: float,
    min_angle_deg: float = MIN_ANGLE_DEG,
    seed: int = 0,
) -> TriangulatedPoints:
    """For each of `pixels` (N, 2) that other views observe, the point that most of them agree on: within `threshold`
    matched pixels, under an angle of at least `min_angle_deg` (LO-RANSAC of pycolmap; J. Schönberger and J.-M. Frahm,
    "Structure-from-Motion Revisited", CVPR 2016, section 4.3). Points of which the first view is no inlier are left
    out."""
    pycolmap = optional.import_pycolmap("triangulation")

    first = ViewObservations(
        np.arange(len(pixels)), np.asarray(pixels, dtype=np.float64), K, cam_from_world, pixel_size
    )
    views = [first, *others]
    cameras, poses = [], []
    for view in views:
        fx, fy, cx, cy = (view.K[i, j] / view.pixel_size for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        cameras.append(pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[fx, fy, cx, cy]))
        poses.append(pycolmap.Rigid3d(np.asarray(view.cam_from_world, dtype=np.float64)[:3]))
    row = np.concatenate([view.rows for view in others] or [np.zeros(0, dtype=np.int64)])
    number = np.repeat(np.arange(1, len(views)), [len(view.rows) for view in others])
    scaled = np.concatenate([view.pixels / view.pixel_size for view in others] or [np.zeros((0, 2))])
    order = np.argsort(row, kind="stable")
    row, number, scaled = row[order], number[order], scaled[order]
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.zeros(0, dtype=np.int64)
    options = pycolmap.EstimateTriangulationOptions()
    options.min_tri_angle = np.radians(min_angle_deg)
    options.residual_type = pycolmap.TriangulationResidualType.REPROJECTION_ERROR
    options.ransac.max_error, options.ransac.random_seed = threshold, seed
    rows, points, counts, tracks, track_pixels = [], [], [], [], []
    for start, end in zip(starts, [*starts[1:], len(row)]):
        track_views = [0, *number[start:end]]
        observed = np.concatenate([first.pixels[row[start]][None] / pixel_size, scaled[start:end]])
        estimate = pycolmap.estimate_triangulation(
            observed, [poses[view] for view in track_views], [cameras[view] for view in track_views], options
        )
        if estimate is None or not estimate["inliers"][0] or not np.isfinite(estimate["xyz"]).all():
            continue
        inliers = np.flatnonzero(estimate["inliers"])
        tracks += [(len(rows), track_views[i]) for i in inliers]
        track_pixels += [observed[i] * views[track_views[i]].pixel_size for i in inliers]
        rows.append(row[start])
        points.append(estimate["xyz"])
        counts.append(len(inliers))
    return TriangulatedPoints(
        np.array(rows, dtype=np.int64),
        np.array(points, dtype=np.float64).reshape(-1, 3),
        np.array(counts, dtype=int),
        np.array(tracks, dtype=np.int64).reshape(-1, 2),
        np.array(track_pixels, dtype=np.float64).reshape(-1, 2),
    )
