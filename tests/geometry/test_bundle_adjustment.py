"""Bundle adjustment with priors: it finds the truth, its deviations are honest, and critical motions keep the prior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.bundle_adjustment import AdjustedBundle, Bundle, Priors, adjust_bundle

WIDTH, HEIGHT = 640, 480


def scene(seed: int, views: int, turning: bool = True, focal_px: float = 600.0, noise: float = 0.5) -> Bundle:
    """Random points in a box, seen by cameras along a line; without `turning` they only move."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-3, -2, 4), (3, 2, 8), (150, 3))
    matrices = []
    for number in range(views):
        x = np.linspace(-1, 1, views)[number]
        rotvec = (0.05 * rng.standard_normal(3) + (0, -0.2 * x, 0)) if turning else np.zeros(3)
        centre = np.array([x, 0, 0]) + 0.1 * rng.standard_normal(3)
        matrices.append(poses.from_rotation_translation(poses.rotation_from_rotvec(rotvec), centre))
    world_from_cam = np.stack(matrices)
    K = cameras.K_from_focal(focal_px, WIDTH, HEIGHT)
    view, point = (index.ravel() for index in np.meshgrid(np.arange(views), np.arange(len(points)), indexing="ij"))
    local = np.stack([poses.transform_points(poses.inverse(pose), points) for pose in world_from_cam])
    pixels = cameras.project(local, K).reshape(-1, 2)
    pixels = pixels + noise * rng.standard_normal(pixels.shape)
    inside = ((pixels > 0) & (pixels < (WIDTH, HEIGHT))).all(-1)
    seen = np.bincount(point[inside], minlength=len(points)) >= 2
    use = inside & seen[point]
    kept = np.cumsum(seen) - 1
    return Bundle(
        K=K[None],
        distortion=np.zeros((1, 4)),
        fisheye=np.zeros(1, bool),
        long_side_px=np.array([WIDTH]),
        camera_ids=np.zeros(views, dtype=np.int64),
        world_from_cam=world_from_cam,
        points_world=points[seen],
        view=view[use],
        point=kept[point[use]],
        pixels=pixels[use],
    )


def with_prior(bundle: Bundle, focal_px: float, sd: float = 0.4) -> AdjustedBundle:
    K = bundle.K.copy()
    K[:, [0, 1], [0, 1]] = focal_px
    found = adjust_bundle(bundle, Priors(np.array([sd]), np.array([[0.05, 0, 0, 0]])), K)
    assert found is not None
    return found


def log_error(found: AdjustedBundle, focal_px: float) -> float:
    return float(np.log(found.bundle.K[0, 0, 0] / focal_px))


@pytest.mark.parametrize("prior_px", [400.0, 620.0, 950.0])
def test_a_turning_camera_gives_the_focal_length_whatever_the_prior(prior_px: float) -> None:
    found = with_prior(scene(0, 6), prior_px)
    assert found.log_focal_sd[0] < 0.03
    assert abs(log_error(found, 600.0)) < 3 * found.log_focal_sd[0]
    assert 0.3 < found.sigma_px < 0.7


def test_a_camera_that_only_moves_keeps_the_prior_and_says_so() -> None:
    exact = scene(1, 4, turning=False)
    # twice the focal length and twice the depths give the same pixels
    K = exact.K.copy()
    K[:, [0, 1], [0, 1]] *= 2
    drifted = replace(exact, K=K, points_world=exact.points_world * (1, 1, 2))
    drifted.world_from_cam[:, 2, 3] *= 2
    found = with_prior(drifted, 650.0, sd=0.3)
    assert log_error(found, 650.0) == pytest.approx(0, abs=0.1)
    assert 0.15 < found.log_focal_sd[0] <= 0.3


def test_a_fixed_lens_stays_and_its_poses_are_found() -> None:
    bundle = scene(2, 4)
    turned = bundle.world_from_cam.copy()
    turned[2, :3, 3] += (0.05, 0.02, 0)
    found = adjust_bundle(replace(bundle, world_from_cam=turned), Priors(np.zeros(1), np.zeros((1, 4))), bundle.K)
    np.testing.assert_array_equal(found.bundle.K, bundle.K)
    assert found.log_focal_sd[0] == np.abs(found.distortion_sd).max() == 0 and len(found.modes) == 0
    size = np.linalg.norm(found.bundle.residuals_px(), axis=1)
    assert np.sqrt(np.mean(size**2)) < 0.75


def test_deviations_are_those_of_many_noises() -> None:
    scores = []
    for seed in range(20):
        found = with_prior(scene(100 + seed, 3 + seed % 3), 600.0)
        scores.append(log_error(found, 600.0) / found.log_focal_sd[0])
    # they are stated larger than independent errors would make them, for matches' errors are not
    assert np.abs(scores).max() < 3 and 0.1 < np.sqrt(np.mean(np.square(scores))) < 1.2


def test_observations_behind_their_camera_change_nothing() -> None:
    bundle = scene(5, 5)
    row = int(np.flatnonzero(bundle.point == 7)[0])
    world_from_cam = bundle.world_from_cam[bundle.view[row]]
    behind = poses.transform_points(world_from_cam, np.array([[0.1, 0.2, -3.0]]))[0]
    last = len(bundle.points_world)
    more = replace(
        bundle,
        points_world=np.concatenate([bundle.points_world, [behind]]),
        view=np.concatenate([bundle.view, np.arange(2)]),
        point=np.concatenate([bundle.point, [last, last]]),
        pixels=np.concatenate([bundle.pixels, np.full((2, 2), 100.0)]),
    )
    assert not np.isfinite(more.residuals_px()).all()
    alone, beside = with_prior(bundle, 620.0), with_prior(more, 620.0)
    np.testing.assert_allclose(beside.bundle.world_from_cam, alone.bundle.world_from_cam, atol=1e-4)
    np.testing.assert_allclose(beside.bundle.K, alone.bundle.K, rtol=1e-4)
    assert beside.bundle.view is more.view


def test_modes_tell_how_the_views_go_with_the_lens() -> None:
    bundle = scene(3, 4)
    found = with_prior(bundle, 600.0)
    assert found.modes.shape[1:] == (4, 10)
    np.testing.assert_allclose(np.sqrt((found.modes[:, 0, 0] ** 2).sum()), found.log_focal_sd[0], rtol=1e-6)
    # the cameras are laid over each other: no mode moves all of them alike
    assert np.abs(found.modes[:, :, 7:].mean(axis=1)).max() < 1e-9
    # a lens that is given at another place along a mode gives poses there
    mode = found.modes[np.argmax(np.abs(found.modes[:, 0, 0]))]
    K = found.bundle.K.copy()
    K[:, [0, 1], [0, 1]] *= np.exp(mode[0, 0])
    distortion = found.bundle.distortion.copy()
    distortion[:, 0] += mode[0, 1]
    given = Priors(np.zeros(1), np.zeros((1, 4)))
    moved = adjust_bundle(replace(found.bundle, K=K, distortion=distortion), given, K)
    steps = [np.linalg.norm(np.diff(b.world_from_cam[:, :3, 3], axis=0), axis=1) for b in (found.bundle, moved.bundle)]
    predicted = found.bundle.world_from_cam[:, :3, 3] + mode[:, 7:]
    expected = np.linalg.norm(np.diff(predicted, axis=0), axis=1)
    change, told = (
        steps[1] / steps[1].sum() - steps[0] / steps[0].sum(),
        expected / expected.sum() - steps[0] / steps[0].sum(),
    )
    np.testing.assert_allclose(change, told, atol=0.25 * max(np.abs(told).max(), 1e-4))
