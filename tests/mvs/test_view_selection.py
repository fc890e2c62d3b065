"""The directions of planes are found among scattered points, commonest first, and none where there are no planes."""

from __future__ import annotations

import numpy as np

from dune_cli.mvs.view_selection import dominant_normals


def test_a_floor_and_a_wall_are_found() -> None:
    rng = np.random.default_rng(0)
    floor = np.column_stack([rng.uniform(-3, 3, 600), np.full(600, 1.4), rng.uniform(2, 8, 600)])
    wall = np.column_stack([np.full(300, 4.0), rng.uniform(-2, 1, 300), rng.uniform(2, 8, 300)])
    clutter = rng.uniform([-3, -2, 2], [3, 1, 8], (150, 3))
    points = np.concatenate([floor, wall, clutter]) + rng.normal(0, 0.003, (1050, 3))
    found = dominant_normals(points, 3)
    angles = np.degrees(np.arccos(np.abs(found[:2] @ np.eye(3)[[1, 0]].T).clip(0, 1)))
    assert (np.diag(angles) < 3).all()
    np.testing.assert_allclose(np.abs(dominant_normals(1000 * points, 1) @ found[0]), 1, atol=1e-6)


def test_a_cloud_without_planes_and_one_too_small_have_no_direction() -> None:
    rng = np.random.default_rng(0)
    assert dominant_normals(rng.normal(0, 1, (500, 3)), 3).shape == (0, 3)
    assert dominant_normals(rng.normal(0, 1, (5, 3)), 3).shape == (0, 3)
