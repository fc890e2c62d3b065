"""Points of one view, triangulated from its matches with other views whose poses are all known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli import optional

MIN_ANGLE_DEG = 1.5  # between the rays of a point; as in COLMAP


@dataclass(frozen=True)
class TriangulatedPoints:
    """`rows` (P,) which of the view's pixels have a point, `points_world` (P, 3), and `observations` (P,): by how many
    views, that one included, each is seen. `tracks` (Q, 2): point and view (0 the own one, then the others in their
    order) of every observation, the points ascending, at `track_pixels` (Q, 2)."""

    rows: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    tracks: np.ndarray
    track_pixels: np.ndarray


@dataclass(frozen=True)
class ViewObservations:
    """What another view sees: `rows` (M,) of the first view's pixels, at `pixels` (M, 2); its pinhole `K` (3, 3),
    `cam_from_world` (4, 4), and `unit_px`, the pixels that count as one."""

    rows: np.ndarray
    pixels: np.ndarray
    K: np.ndarray
    cam_from_world: np.ndarray
    unit_px: float


def triangulate_with_known_poses(
    pixels: np.ndarray,
    K: np.ndarray,
    cam_from_world: np.ndarray,
    unit_px: float,
    others: Sequence[ViewObservations],
    threshold: float,
    min_angle_deg: float = MIN_ANGLE_DEG,
    seed: int = 0,
) -> TriangulatedPoints:
    """For each of `pixels` (N, 2) that other views see, the point that most of them agree on: within `threshold` of
    their units, under an angle of at least `min_angle_deg` (LO-RANSAC of pycolmap; J. Schönberger and J.-M. Frahm,
    "Structure-from-Motion Revisited", CVPR 2016, section 4.3). Points that the view itself does not agree with are
    none of its own."""
    pycolmap = optional.import_pycolmap("triangulation")

    views = [
        ViewObservations(np.arange(len(pixels)), np.asarray(pixels, dtype=np.float64), K, cam_from_world, unit_px),
        *others,
    ]
    cameras, poses = [], []
    for view in views:
        fx, fy, cx, cy = (view.K[i, j] / view.unit_px for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        cameras.append(pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[fx, fy, cx, cy]))
        poses.append(pycolmap.Rigid3d(np.asarray(view.cam_from_world, dtype=np.float64)[:3]))
    row = np.concatenate([view.rows for view in views[1:]] or [np.zeros(0, dtype=np.int64)])
    which = np.repeat(np.arange(1, len(views)), [len(view.rows) for view in views[1:]])
    place = np.concatenate([view.pixels / view.unit_px for view in views[1:]] or [np.zeros((0, 2))])
    order = np.argsort(row, kind="stable")
    row, which, place = row[order], which[order], place[order]
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.zeros(0, dtype=np.int64)
    options = pycolmap.EstimateTriangulationOptions()
    options.min_tri_angle = np.radians(min_angle_deg)
    options.residual_type = pycolmap.TriangulationResidualType.REPROJECTION_ERROR
    options.ransac.max_error, options.ransac.random_seed = threshold, seed
    rows, points, counts, tracks, places = [], [], [], [], []
    for start, end in zip(starts, [*starts[1:], len(row)]):
        own = views[0].pixels[row[start]] / unit_px
        seen_by = [0, *which[start:end]]
        spots = np.concatenate([own[None], place[start:end]])
        found = pycolmap.estimate_triangulation(
            spots,
            [poses[view] for view in seen_by],
            [cameras[view] for view in seen_by],
            options,
        )
        if found is None or not found["inliers"][0] or not np.isfinite(found["xyz"]).all():
            continue
        agreeing = np.flatnonzero(found["inliers"])
        tracks += [(len(rows), seen_by[spot]) for spot in agreeing]
        places += [spots[spot] * views[seen_by[spot]].unit_px for spot in agreeing]
        rows.append(row[start])
        points.append(found["xyz"])
        counts.append(len(agreeing))
    return TriangulatedPoints(
        np.array(rows, dtype=np.int64),
        np.array(points, dtype=np.float64).reshape(-1, 3),
        np.array(counts, dtype=int),
        np.array(tracks, dtype=np.int64).reshape(-1, 2),
        np.array(places, dtype=np.float64).reshape(-1, 2),
    )
