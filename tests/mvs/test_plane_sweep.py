"""Plane sweeps, semi-global smoothing and consistency on scenes whose depth is known exactly, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.geometry import cameras, poses
from dune_cli.mvs import plane_sweep, sgm
from support import synthetic_scenes

WIDTH, HEIGHT = 96, 72
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
MOVES = [((0, 0.02, 0), (0.2, 0, 0)), ((0.01, -0.02, 0.03), (-0.2, 0.02, 0)), ((0, 0, 0), (0.02, 0.2, 0.1))]


def _views() -> tuple[torch.Tensor, np.ndarray, list[plane_sweep.SourceView]]:
    rgb, depth = synthetic_scenes.render(K, np.eye(4), WIDTH, HEIGHT)
    neighbours = []
    for move in MOVES:
        pose = synthetic_scenes.pose(*move)
        other, _ = synthetic_scenes.render(K, pose, WIDTH, HEIGHT)
        neighbours.append(plane_sweep.source_view(_grey(other), K, K, poses.inverse(pose)))
    return _grey(rgb), depth, neighbours


def _grey(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb.astype(np.float64).mean(-1))


def test_a_pixel_lands_where_its_point_projects() -> None:
    pose = poses.inverse(synthetic_scenes.pose(*MOVES[1]))
    K2 = cameras.K_from_focal(80, 100, 60)
    view = plane_sweep.source_view(torch.zeros(60, 100), K, K2, pose)
    pixels = cameras.pixel_grid(HEIGHT, WIDTH).reshape(-1, 2)
    inverse_depth = np.random.default_rng(0).uniform(0.1, 0.5, len(pixels))
    at = np.column_stack([pixels, np.ones(len(pixels))]) @ view.homography.T + inverse_depth[:, None] * view.epipole
    expected = cameras.project(poses.transform_points(pose, cameras.backproject(pixels, 1 / inverse_depth, K)), K2)
    np.testing.assert_allclose(at[:, :2] / at[:, 2:], expected, atol=1e-9)
    step = 1e-6
    after = cameras.backproject(pixels, 1 / (inverse_depth + step), K)
    moved = np.linalg.norm(cameras.project(poses.transform_points(pose, after), K2) - expected, axis=1)
    np.testing.assert_allclose(plane_sweep.displacement_px(view, pixels, inverse_depth), moved / step, rtol=1e-4)


def test_the_true_depth_costs_least() -> None:
    grey, depth, neighbours = _views()
    sweep = plane_sweep.PlaneSweep(grey, neighbours, best=2, radius=2)
    true = torch.from_numpy(1 / depth)
    at_truth = sweep.cost(true)
    assert at_truth.dtype == torch.float64
    assert at_truth.median() < 0.1
    for factor in (0.9, 1.1):
        assert (sweep.cost(true * factor) > at_truth).double().mean() > 0.9


def test_exposure_does_not_matter() -> None:
    grey, depth, neighbours = _views()
    darker = [plane_sweep.SourceView(0.5 * view.grey + 30, view.homography, view.epipole) for view in neighbours]
    true = torch.from_numpy(1 / depth)
    costs = [plane_sweep.PlaneSweep(grey, views, 2, 2).cost(true) for views in (neighbours, darker)]
    assert (costs[0] - costs[1]).abs().quantile(0.95) < 0.1  # the allowance for noise weighs more in a darker photo


def test_what_a_neighbour_does_not_see_counts_as_uncorrelated_and_the_best_count() -> None:
    grey, depth, neighbours = _views()
    turned_away = plane_sweep.source_view(neighbours[0].grey, K, K, synthetic_scenes.pose((0, np.pi, 0), (0, 0, 0)))
    true = torch.from_numpy(1 / depth)
    assert (plane_sweep.PlaneSweep(grey, [turned_away], 1, 2).cost(true) == plane_sweep.OUTSIDE_COST).all()
    with_it, without = (
        plane_sweep.PlaneSweep(grey, views, 1, 2).cost(true) for views in ([*neighbours, turned_away], neighbours)
    )
    torch.testing.assert_close(with_it, without.clamp(max=plane_sweep.OUTSIDE_COST))


def test_planes_stay_as_they_are_when_smoothed_and_edges_too() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    plane = (0.2 + 0.003 * x - 0.002 * y).double()
    torch.testing.assert_close(plane_sweep.smooth_planar(plane, 3, 1e-3), plane)
    stepped = torch.where(x < 15, plane, plane + 0.3)
    torch.testing.assert_close(plane_sweep.smooth_planar(stepped, 3, 1e-3), stepped)
    noise = 1e-3 * torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (plane_sweep.smooth_planar(plane + noise, 3, 1e-2) - plane).abs().mean() < 0.5 * noise.abs().mean()


def test_a_parabola_is_lowest_at_its_vertex() -> None:
    at = torch.tensor([-0.4, 0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(plane_sweep.parabola_vertex((-1 - at) ** 2, at**2, (1 - at) ** 2), at)
    flat = torch.ones(3)
    torch.testing.assert_close(plane_sweep.parabola_vertex(flat, flat, flat), torch.zeros(3))


@pytest.mark.parametrize("directions", [4, 8])
def test_smoothing_fills_what_matches_nothing_and_keeps_edges(directions: int) -> None:
    truth = torch.full((24, 32), 3)
    truth[:, 16:] = 9
    cost = torch.ones(12, 24, 32, dtype=torch.float64)
    cost.scatter_(0, truth[None], 0.0)
    cost[:, 8:14, 4:28] = 0.5  # says nothing
    large = torch.full((24, 32), 0.6, dtype=torch.float64)
    found = sgm.aggregate_planes(cost, 0.1, large, directions).argmin(0)
    wrong = found != truth
    wrong[:, 14:18] = False  # where the edge lies is open in the hole
    assert not wrong.any()


def test_lists_of_all_planes_are_smoothed_like_planes() -> None:
    """With steps that cost in proportion, capped, both are the same dynamic program."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(3, 10, 12, dtype=torch.float64, generator=generator)
    large = torch.full((10, 12), 0.3, dtype=torch.float64)
    labels = torch.arange(3, dtype=torch.float64)[:, None, None].expand(3, 10, 12)
    planes = sgm.aggregate_planes(cost, 0.2, large, 8)
    lists = sgm.aggregate_hypotheses(cost, labels, 0.2, large, 8)
    torch.testing.assert_close(planes, lists)
