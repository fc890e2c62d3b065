"""Depth maps of exact surfaces agree, wrong depths do not, and normals are the surfaces' own."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.mvs.consistency import (
    PosedDepth,
    consistent_pixels,
    free_space_violations,
    hidden_points,
    normals_of_depth,
    reproject,
)
from support import synthetic_scenes

WIDTH, HEIGHT = 120, 90
K = cameras.K_from_fov(60, WIDTH, HEIGHT)


def _view(pose: np.ndarray) -> PosedDepth:
    return PosedDepth(synthetic_scenes.render(K, pose, WIDTH, HEIGHT, samples=1)[1], K, pose)


def test_true_depth_agrees_and_is_handed_over() -> None:
    one, two = _view(np.eye(4)), _view(synthetic_scenes.pose((0, 0.05, 0.02), (0.3, 0.05, 0.1)))
    agreement = reproject(one, two)
    visible = synthetic_scenes.visible_in(one.depth, two.depth, K, poses.inverse(two.world_from_cam))
    good = consistent_pixels(one, agreement, 0.5, 0.01)
    assert good[visible].mean() > 0.9  # the others lie at depth edges
    # the neighbour's surface is interpolated between its pixels, in which planes are exact
    assert np.median(np.abs(agreement.depth / one.depth - 1)[good]) < 1e-9


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_wrong_depth_does_not_agree(factor: float) -> None:
    one, two = _view(np.eye(4)), _view(synthetic_scenes.pose((0, 0.05, 0.02), (0.3, 0.05, 0.1)))
    wrong = PosedDepth(one.depth * factor, K, one.world_from_cam)
    assert consistent_pixels(wrong, reproject(wrong, two), 1.0, 0.01).mean() < 0.02


def test_a_point_before_the_surface_is_seen_through_and_one_behind_is_hidden() -> None:
    one, two = _view(np.eye(4)), _view(synthetic_scenes.pose((0, 0, 0), (0.1, 0, 0)))
    before, behind = {}, {}
    for factor in (0.8, 1.0, 1.2):
        moved = PosedDepth(one.depth * factor, K, one.world_from_cam)
        before[factor] = free_space_violations(moved, reproject(moved, two), 0.05).mean()
        behind[factor] = hidden_points(moved, reproject(moved, two), 0.05).mean()
    assert before[0.8] > 0.8 and before[1.0] < 0.02 and before[1.2] < 0.1
    assert behind[1.2] > 0.8 and behind[1.0] < 0.05 and behind[0.8] < 0.1


def test_nothing_is_seen_behind_a_camera_or_where_depth_is_unknown() -> None:
    one = _view(np.eye(4))
    behind = PosedDepth(one.depth, K, synthetic_scenes.pose((0, np.pi, 0), (0, 0, 0)))
    assert np.isnan(reproject(one, behind).error_px).all()
    unknown = PosedDepth(np.full_like(one.depth, np.nan), K, one.world_from_cam)
    assert np.isnan(reproject(one, unknown).depth).all() and np.isnan(reproject(unknown, one).depth).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_normals_of_a_plane_are_exact_at_any_scale(scale: float) -> None:
    normal = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])
    rays = cameras.backproject(cameras.pixel_grid(HEIGHT, WIDTH), np.ones((HEIGHT, WIDTH)), K)
    depth = -4 * scale / (rays @ normal)  # the plane 4 before the camera
    depth[depth <= 0] = np.nan
    depth[10, 10:20] = np.nan
    found = normals_of_depth(depth, K, max_step=0.2)
    known = np.isfinite(found).all(-1)
    assert known[np.isfinite(depth)].mean() > 0.99
    np.testing.assert_allclose(found[known], np.broadcast_to(normal, found[known].shape), atol=1e-6)


def test_normals_do_not_mix_two_surfaces() -> None:
    depth = np.full((30, 40), 2.0)
    depth[:, 20:] = 3.0
    found = normals_of_depth(depth, K)
    np.testing.assert_allclose(found, np.broadcast_to([0.0, 0.0, -1.0], found.shape), atol=1e-9)
