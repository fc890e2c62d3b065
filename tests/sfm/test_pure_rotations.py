"""A camera that only turned is told from one that moved: with a lens of unknown distortion, beside false matches, and
in steps that are too small to be seen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import K_from_fov
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec, transform_points
from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.pure_rotations import find_pure_rotations
from dune_cli.sfm.verification import VerifiedPairs

WIDTH, HEIGHT, FOCAL, POINTS = 640, 480, 600.0, 6000


def photographed(
    centres: np.ndarray, k1: float, step_deg: float = 10.0, lens_known: bool = False
) -> tuple[Correspondences, VerifiedPairs, PhotoCameras]:
    """Points at distances of 4 to 20, from `centres` (V, 3) by a camera that turns from photo to photo: its focal
    length is a guess of one third less, and its distortion is unknown."""
    rng = np.random.default_rng(0)
    angle, height = rng.uniform(-0.8, len(centres) * np.radians(step_deg) + 0.8, POINTS), rng.uniform(-0.5, 0.5, POINTS)
    points = np.stack([np.sin(angle), height, np.cos(angle)], axis=1) * rng.uniform(4, 20, (POINTS, 1))
    camera = Camera("SIMPLE_RADIAL", (FOCAL, WIDTH / 2, HEIGHT / 2, k1), WIDTH, HEIGHT)
    keypoints, visible = [], []
    for number, centre in enumerate(centres):
        turned = rotation_from_rotvec(np.array([0.0, np.radians(step_deg) * number, 0.02 * (-1) ** number]))
        points_cam = transform_points(inverse(from_rotation_translation(turned, centre)), points)
        pixels = camera.project(points_cam)
        inside = (points_cam[:, 2] > 0) & ((pixels >= 0) & (pixels < (WIDTH, HEIGHT))).all(1)
        keypoints.append(np.where(inside[:, None], pixels + rng.normal(0, 0.3, pixels.shape), 0))
        visible.append(inside)
    matches = {}
    for i, j in combinations(range(len(centres)), 2):
        rows = np.flatnonzero(visible[i] & visible[j]).astype(np.uint32)[:400]
        if len(rows) >= 30:
            matches[i, j] = np.stack([rows, rows], axis=1)
    guess = SharedCamera(Camera.pinhole(K_from_fov(76, WIDTH, HEIGHT), WIDTH, HEIGHT), False, False, lens_known)
    count = len(centres)
    colors = tuple(np.zeros((POINTS, 3), np.uint8) for _ in centres)
    found = Correspondences(tuple(keypoints), colors, (1.0,) * count, matches)
    return found, verified(matches), PhotoCameras((guess,), (0,) * count)


def verified(matches: dict[tuple[int, int], np.ndarray]) -> VerifiedPairs:
    geometry = {pair: SimpleNamespace(inlier_matches=rows) for pair, rows in matches.items()}
    return VerifiedPairs(geometry, {pair: (len(rows), len(rows)) for pair, rows in matches.items()})


def steps(length: float) -> Callable[[int], np.ndarray]:
    return lambda count: length * np.arange(count)[:, None] * np.array([1.0, 0.1, 0.0])


@pytest.mark.parametrize("k1", [-0.2, 0.0, 0.1])
def test_a_lens_with_distortion_does_not_hide_that_the_camera_only_turned(k1: float) -> None:
    found, _ = find_pure_rotations(*(case := photographed(np.zeros((7, 3)), k1)))
    assert found.pairs == set(case[1].geometry) and found.explained > 0.95 * found.matches


@pytest.mark.parametrize("k1", [-0.2, 0.0, 0.1])
def test_a_lens_with_distortion_does_not_hide_parallax(k1: float) -> None:
    """Steps of two hundredths of the distance of the nearest points."""
    assert not any(found.pairs for found in find_pure_rotations(*photographed(steps(0.08)(7), k1)))


def test_a_known_lens_is_kept() -> None:
    assert not find_pure_rotations(*photographed(np.zeros((7, 3)), -0.2, lens_known=True))[0].pairs


def test_false_matches_far_apart_are_no_parallax() -> None:
    """Rows of equal seats: photos that share nothing, three turns apart, have a few matches each."""
    correspondences, _, cameras = photographed(np.zeros((12, 3)), 0.0)
    matches = {pair: rows for pair, rows in correspondences.matches.items() if pair[1] - pair[0] <= 2}
    rng = np.random.default_rng(1)
    for i in range(9):
        visible = [np.flatnonzero(correspondences.keypoints[index].any(1)) for index in (i, i + 3)]
        matches[i, i + 3] = np.stack([rng.choice(rows, 20, replace=False) for rows in visible], axis=1).astype(
            np.uint32
        )
    case = verified(matches)
    assert find_pure_rotations(correspondences, case, cameras)[0].pairs == set(case.geometry)


def test_a_slow_walk_is_no_rotation() -> None:
    """Neighbours differ by less than can be told from a rotation; photos far apart show that the camera moved."""
    correspondences, case, cameras = photographed(steps(0.015)(24), 0.0, step_deg=0.5)
    near = {(i, i + 1): correspondences.matches[i, i + 1] for i in range(23)}
    assert find_pure_rotations(correspondences, verified(near), cameras)[0].pairs
    assert not find_pure_rotations(correspondences, case, cameras)[0].pairs


def test_a_camera_that_hardly_moved_is_told() -> None:
    """It turned about one place, and one step to the side came last."""
    centres = np.zeros((10, 3))
    centres[-1, 0] = 0.15
    none, little = find_pure_rotations(*(case := photographed(centres, 0.0)))
    assert not none.pairs and little.pairs == set(case[1].geometry)
    assert 0.85 * little.matches < little.explained < little.matches
