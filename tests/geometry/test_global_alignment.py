"""Global alignment by law: noisy, partly wrong, wrongly scaled point maps of a known scene give the cameras back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.global_alignment import Alignment, KnownCameras, PairPoints, align, anchor_points, move_alignment
from dune_cli.geometry.sim3 import move_poses, similarity_from_points
from dune_cli.geometry.view_graph import components, register_views

SIZE, FOCAL = (640, 480), 500.0
K = cameras.K_from_focal(FOCAL, *SIZE)
RADIUS = 4.0


def anchors(grid: int) -> np.ndarray:
    x, y = (np.arange(grid) + 0.5) / grid * SIZE[0] - 0.5, (np.arange(grid) + 0.5) / grid * SIZE[1] - 0.5
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def arc(views: int) -> np.ndarray:
    """(V, 4, 4) cameras on half a circle, looking at its centre."""
    placed = []
    for angle in np.pi * np.arange(views) / views:
        centre = np.array([RADIUS * np.sin(angle), 0.3 * np.sin(3 * angle), -RADIUS * np.cos(angle)])
        z = -centre / np.linalg.norm(centre)
        x = np.cross([0, 1, 0], z) / np.linalg.norm(np.cross([0, 1, 0], z))
        placed.append(poses.from_rotation_translation(np.stack([x, np.cross(z, x), z], 1), centre))
    return np.stack(placed)


def made(
    views: int = 7,
    grid: int = 8,
    noise: float = 0.01,
    outliers: float = 0.15,
    wrong_pairs: int = 2,
    scales: float = 0.3,
    seed: int = 0,
) -> tuple[PairPoints, np.ndarray, np.ndarray, list[int]]:
    """The pairs' points, the true poses and depths, and which pairs are wrong: every view with its next three."""
    rng = np.random.default_rng(seed)
    truth, pixels = arc(views), anchors(grid)
    depth = rng.uniform(2.5, 6, (views, len(pixels)))
    world = np.stack([poses.transform_points(T, cameras.backproject(pixels, z, K)) for T, z in zip(truth, depth)])
    pairs = [(i, j) for i in range(views) for j in range(views) if i != j and abs(i - j) <= 3]
    broken = rng.choice(len(pairs), wrong_pairs, replace=False).tolist()
    log_scale = rng.normal(0, scales, len(pairs))
    factor = np.exp(log_scale - np.median(np.delete(log_scale, broken)))
    points = np.empty((len(pairs), 2, len(pixels), 3))
    for e, (i, j) in enumerate(pairs):
        for side, view in ((0, i), (1, j)):
            told = poses.transform_points(poses.inverse(truth[i]), world[view])
            told += noise * np.linalg.norm(told, axis=-1, keepdims=True) * rng.normal(size=told.shape)
            bad = rng.random(len(told)) < outliers
            told[bad] = rng.uniform([-3, -3, 0.5], [3, 3, 8], (bad.sum(), 3))
            points[e, side] = factor[e] * told
    for e in broken:
        turn = poses.rotation_from_rotvec(rng.normal(size=3))
        points[e, 1] = poses.transform_points(poses.from_rotation_translation(turn, rng.normal(size=3)), points[e, 1])
    confidence = np.full((len(pairs), 2, len(pixels)), 2.0)
    data = PairPoints(np.array(pairs), points, confidence, np.tile(pixels, (views, 1, 1)), np.tile(SIZE, (views, 1)))
    return data, truth, depth, broken


def known_K(views: int) -> KnownCameras:
    return replace(KnownCameras.nothing(views), K=np.tile(K, (views, 1, 1)))


def errors(found: Alignment, truth: np.ndarray) -> tuple[float, float]:
    """Largest rotation error in degrees and largest centre error after a rigid fit of the centres and no scale."""
    fit = similarity_from_points(truth[:, :3, 3], found.world_from_cam[:, :3, 3], with_scale=False)
    moved = move_poses(fit, found.world_from_cam)
    turn = np.swapaxes(moved[:, :3, :3], 1, 2) @ truth[:, :3, :3]
    centres = np.linalg.norm(moved[:, :3, 3] - truth[:, :3, 3], axis=1)
    return float(np.degrees(poses.rotation_angle(turn)).max()), float(centres.max())


def test_exact_maps_give_exact_cameras() -> None:
    data, truth, depth, _ = made(noise=0, outliers=0, wrong_pairs=0)
    found = align(data)
    assert found.registered.all()
    np.testing.assert_allclose(found.world_from_cam, poses.inverse(truth[0]) @ truth, atol=1e-6)
    np.testing.assert_allclose(found.depth, depth, rtol=1e-6)
    np.testing.assert_allclose(found.K, np.tile(K, (7, 1, 1)), rtol=1e-6)
    assert found.error < 1e-6
    expected = [poses.transform_points(T, cameras.backproject(anchors(8), z, K)) for T, z in zip(truth, depth)]
    world = poses.transform_points(poses.inverse(truth[0]), np.stack(expected))
    np.testing.assert_allclose(anchor_points(found, data.anchors), world, atol=1e-5)


@pytest.mark.parametrize("intrinsics", [True, False])
@pytest.mark.parametrize(("noise", "outliers", "wrong"), [(0.01, 0.1, 2), (0.02, 0.2, 3)])
def test_noise_outliers_wrong_pairs_and_wrong_scales(
    intrinsics: bool, noise: float, outliers: float, wrong: int
) -> None:
    data, truth, depth, broken = made(noise=noise, outliers=outliers, wrong_pairs=wrong)
    found = align(data, known_K(len(truth)) if intrinsics else None)
    assert found.registered.all()
    turn_deg, shift = errors(found, truth)
    assert turn_deg < 60 * noise, "degrees"
    assert shift < 2.5 * noise * RADIUS, "the scale is metric: no scale was fitted here"
    assert np.median(np.abs(found.depth / depth - 1)) < noise
    assert np.abs(found.K[:, 0, 0] / FOCAL - 1).max() < (1e-12 if intrinsics else noise)
    right = np.setdiff1d(np.arange(len(data.pairs)), broken)
    assert found.pair_inliers[broken].max() < 0.3 < 0.6 < found.pair_inliers[right].min()
    assert found.error < 2.5 * noise


def test_a_wrong_map_of_the_only_confident_kind_is_outvoted() -> None:
    """Wrong pairs that are surer than all others do not lead the tree."""
    data, truth, _, broken = made(wrong_pairs=4)
    data.confidence[broken] = 20.0
    turn_deg, shift = errors(align(data, known_K(len(truth))), truth)
    assert turn_deg < 1
    assert shift < 0.1


def test_a_similarity_of_all_inputs_carries_over() -> None:
    data, truth, _, _ = made()
    base = align(data, known_K(len(truth)))
    larger = align(replace(data, points=3 * data.points), known_K(len(truth)))
    np.testing.assert_allclose(larger.world_from_cam[:, :3, :3], base.world_from_cam[:, :3, :3], atol=1e-3)
    np.testing.assert_allclose(larger.world_from_cam[:, :3, 3], 3 * base.world_from_cam[:, :3, 3], atol=6e-2)
    assert np.quantile(np.abs(larger.depth / (3 * base.depth) - 1), 0.9) < 0.01
    moved = move_alignment(base, 2 * np.diag([1.0, 1, 1, 0.5]))
    np.testing.assert_allclose(anchor_points(moved, data.anchors), 2 * anchor_points(base, data.anchors))


def test_the_order_of_views_and_pairs_does_not_matter() -> None:
    data, truth, _, _ = made()
    views = np.random.default_rng(5).permutation(len(truth))  # new view v is old view views[v]
    rows = np.random.default_rng(6).permutation(len(data.pairs))
    new_of_old = np.argsort(views)
    shuffled = PairPoints(
        new_of_old[data.pairs[rows]],
        data.points[rows],
        data.confidence[rows],
        data.anchors[views],
        data.sizes[views],
    )
    base, other = align(data, known_K(len(truth))), align(shuffled, known_K(len(truth)))
    back = poses.inverse(other.world_from_cam[new_of_old[0]]) @ other.world_from_cam[new_of_old]
    np.testing.assert_allclose(back, base.world_from_cam, atol=2e-2)
    assert other.world_from_cam[0] == pytest.approx(np.eye(4), abs=1e-12)


def test_known_poses_are_kept_to_the_bit_and_place_the_others() -> None:
    data, truth, depth, _ = made(wrong_pairs=0)
    world_from_cam = 1.0 * truth
    world_from_cam[:, :3, 3] *= 5  # a world in other units
    known = replace(known_K(len(truth)), world_from_cam=world_from_cam.copy())
    known.world_from_cam[[2, 5]] = np.nan
    found = align(data, known)
    given = known.has_pose
    np.testing.assert_array_equal(found.world_from_cam[given], world_from_cam[given])
    turn = np.swapaxes(found.world_from_cam[:, :3, :3], 1, 2) @ truth[:, :3, :3]
    assert np.degrees(poses.rotation_angle(turn)).max() < 0.5
    np.testing.assert_allclose(found.world_from_cam[:, :3, 3], world_from_cam[:, :3, 3], atol=5 * 0.05)
    assert np.median(np.abs(found.depth / (5 * depth) - 1)) < 0.01


def test_priors_pull_but_do_not_hold() -> None:
    data, truth, _, _ = made(wrong_pairs=0)
    off = truth.copy()
    off[3, :3, 3] += [0.1, 0, 0]
    held, pulled = (
        align(data, replace(known_K(len(truth)), world_from_cam=off, poses_are_priors=prior)) for prior in (False, True)
    )
    shift = [np.linalg.norm(found.world_from_cam[3, :3, 3] - truth[3, :3, 3]) for found in (held, pulled)]
    assert shift[0] == pytest.approx(0.1)
    assert shift[1] < 0.07
    free = [v for v in range(len(truth)) if v != 3]
    np.testing.assert_allclose(pulled.world_from_cam[free], truth[free], atol=0.05)


def test_one_known_pose_sets_the_world_and_leaves_the_scale() -> None:
    data, truth, _, _ = made(wrong_pairs=0)
    known = known_K(len(truth))
    known.world_from_cam[4] = truth[4]
    found = align(data, known)
    np.testing.assert_array_equal(found.world_from_cam[4], truth[4])
    np.testing.assert_allclose(found.world_from_cam, truth, atol=0.1)


def test_views_that_hang_together_with_no_other_are_left_out() -> None:
    data, truth, _, _ = made(views=6, wrong_pairs=0)
    keep = (data.pairs < 4).all(1) | (data.pairs >= 4).all(1)
    split = replace(data, pairs=data.pairs[keep], points=data.points[keep], confidence=data.confidence[keep])
    found = align(split, known_K(6))
    assert found.registered.tolist() == [True] * 4 + [False] * 2
    part = replace(found, world_from_cam=found.world_from_cam[:4])
    assert errors(part, truth[:4])[0] < 1


def test_noise_aligns_with_nothing() -> None:
    data, _, _, _ = made()
    points = np.random.default_rng(1).normal(size=data.points.shape) * 3
    assert align(replace(data, points=points)) is None


def test_what_cannot_be_aligned_is_named() -> None:
    data, _, _, _ = made(views=4)
    with pytest.raises(ValueError, match=r"views \[0\] are the first of no pair"):
        keep = data.pairs[:, 0] != 0
        align(replace(data, pairs=data.pairs[keep], points=data.points[keep], confidence=data.confidence[keep]))
    with pytest.raises(ValueError, match="do not go with points"):
        align(replace(data, points=data.points[:, :, :-1]))
    with pytest.raises(ValueError, match="3 known cameras for 4 views"):
        align(data, KnownCameras.nothing(3))


def test_the_tree_avoids_wrong_edges() -> None:
    truth = arc(6)
    pairs = np.array([(i, j) for i in range(6) for j in range(6) if i != j])
    steps = poses.inverse(truth[pairs[:, 0]]) @ truth[pairs[:, 1]]
    steps[:, :3, 3] /= RADIUS
    wrong = np.arange(0, len(pairs), 5)
    turns = 1.5 * np.random.default_rng(0).normal(size=(len(wrong), 3))
    steps[wrong, :3, :3] = steps[wrong, :3, :3] @ poses.rotation_from_rotvec(turns)
    scores = np.where(np.isin(np.arange(len(pairs)), wrong), 2.0, 1.0)
    placed, inside, agree = register_views(6, pairs, steps, scores)
    assert inside.all()
    np.testing.assert_array_equal(np.flatnonzero(~agree), wrong)
    expected = poses.inverse(truth[0]) @ truth
    expected[:, :3, 3] /= RADIUS
    np.testing.assert_allclose(placed, expected, atol=1e-9)


def test_components_are_largest_first() -> None:
    groups = components(6, np.array([[0, 1], [3, 4], [5, 4]]))
    assert [group.tolist() for group in groups] == [[3, 4, 5], [0, 1], [2]]
