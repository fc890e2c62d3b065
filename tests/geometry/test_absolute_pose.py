"""PnP on exact, noisy and mostly wrong correspondences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.absolute_pose import Matches2D3D, estimate_absolute_pose, pnp_log10_nfa, solve_pnp
from support import synthetic_maps
from support.synthetic_maps import QUERY

K = np.array([[500.0, 3.0, 319.5], [0, 540.0, 239.5], [0, 0, 1]])
MAP_K = synthetic_maps.K


def view(seed: int, rotvec, centre, scale: float = 1.0, count: int = 400):
    """World points, their pixels, and the true `cam_from_world`; the points lie in front of the camera."""
    rng = np.random.default_rng(seed)
    world_from_cam = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array(rotvec)), np.array(centre))
    points_cam = rng.uniform([-2, -2, 3], [2, 2, 9], (count, 3))
    points = poses.transform_points(world_from_cam, points_cam) * scale
    world_from_cam[:3, 3] *= scale
    return points, cameras.project(points_cam, K), poses.inverse(world_from_cam)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3), st.tuples(*[st.floats(-5, 5)] * 3), st.sampled_from([1e-3, 1.0, 1e3]))
def test_exact_points_give_the_exact_pose_at_any_scale(rotvec: tuple, centre: tuple, scale: float) -> None:
    points, pixels, truth = view(0, rotvec, centre, scale)
    found = estimate_absolute_pose(points, pixels, K, 2.0)
    assert found is not None and found.inliers.all()
    np.testing.assert_allclose(found.cam_from_world[:3, :3], truth[:3, :3], atol=1e-6)
    np.testing.assert_allclose(found.cam_from_world[:3, 3] / scale, truth[:3, 3] / scale, atol=1e-5)
    assert found.reprojection_error_px < 1e-3


def test_two_thirds_of_wrong_points_and_noise_are_survived_and_a_seed_repeats() -> None:
    points, pixels, truth = view(1, (0.1, 0.4, -0.2), (1.0, 0.5, -2.0), count=900)
    rng = np.random.default_rng(3)
    wrong = np.arange(900) < 600
    pixels = pixels + rng.normal(0, 0.5, pixels.shape)
    pixels[wrong] = rng.uniform(0, 640, (600, 2))
    first, second = (estimate_absolute_pose(points, pixels, K, 3.0, seed=5) for _ in range(2))
    assert first is not None and second is not None
    assert np.degrees(poses.rotation_angle(first.cam_from_world[:3, :3] @ truth[:3, :3].T)) < 0.1
    assert first.inliers[~wrong].mean() > 0.98 and first.inliers[wrong].mean() < 0.03
    np.testing.assert_array_equal(first.cam_from_world, second.cam_from_world)


def test_too_few_or_senseless_points_give_no_pose() -> None:
    points, pixels, _ = view(2, (0, 0, 0), (0, 0, 0))
    assert estimate_absolute_pose(points[:5], pixels[:5], K, 2.0) is None
    assert estimate_absolute_pose(np.ones((50, 3)), pixels[:50], K, 2.0) is None


# matches of a query with a map, exact and noisy


def matches_of(count: int, noise_px: float = 0.0, copies: int = 1, seed: int = 0) -> Matches2D3D:
    """`count` keypoints of the query, each matched `copies` times, half of them wrong."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, [synthetic_maps.WIDTH, synthetic_maps.HEIGHT], (count, 2))
    points_world = poses.transform_points(QUERY, cameras.backproject(pixels, rng.uniform(3, 8, count), MAP_K))
    points_world[count // 2 :] = rng.uniform([-4, -4, 4], [4, 4, 12], (count - count // 2, 3))
    noisy = pixels + rng.normal(0, noise_px, pixels.shape)
    image = np.repeat(np.arange(copies), count)
    return Matches2D3D.of(np.tile(noisy, (copies, 1)), np.tile(points_world, (copies, 1)), image, 1.0)


def test_known_poses_come_back() -> None:
    seen = matches_of(80)
    found = solve_pnp(seen, MAP_K, 3.0)
    np.testing.assert_allclose(poses.inverse(found.pose.cam_from_world), QUERY, atol=1e-6)
    assert found.keypoints >= 40 and found.inliers[:40].all()


def test_an_unknown_focal_length_comes_back() -> None:
    seen = matches_of(200)
    wrong = cameras.K_from_fov(40, synthetic_maps.WIDTH, synthetic_maps.HEIGHT)
    found = solve_pnp(seen, wrong, 3.0, focal_unknown=True)
    np.testing.assert_allclose(found.pose.K[0, 0], MAP_K[0, 0], rtol=1e-3)
    np.testing.assert_allclose(poses.inverse(found.pose.cam_from_world), QUERY, atol=1e-3)


def test_more_points_less_doubt_and_copies_are_no_points() -> None:
    spreads = [np.linalg.norm(solve_pnp(matches_of(n, 0.5), MAP_K, 3.0).pose.position_std) for n in (40, 160, 640)]
    assert spreads[0] > 1.5 * spreads[1] > 2 * spreads[2]
    once, thrice = (solve_pnp(matches_of(100, 0.5, copies), MAP_K, 3.0) for copies in (1, 3))
    assert once.keypoints == thrice.keypoints
    np.testing.assert_allclose(
        np.linalg.norm(once.pose.position_std), np.linalg.norm(thrice.pose.position_std), rtol=0.15
    )


def test_the_covariance_is_that_of_repeated_noise() -> None:
    told, moved = [], []
    for seed in range(40):
        seen = matches_of(120, 0.5, seed=1000)
        noise = np.random.default_rng(seed).normal(0, 0.5, seen.pixels.shape)
        exact = matches_of(120, 0.0, seed=1000)
        found = solve_pnp(
            Matches2D3D.of(exact.pixels + noise, exact.points_world, exact.image, 1.0),
            MAP_K,
            3.0,
            seed=seed,
        )
        moved.append(poses.inverse(found.pose.cam_from_world)[:3, 3] - QUERY[:3, 3])
        told.append(np.diag(found.pose.covariance)[3:])
    ratio = np.sqrt(np.mean(np.square(moved), axis=0) / np.mean(told, axis=0))
    assert (ratio > 0.6).all() and (ratio < 1.6).all()


def test_chance_grows_with_matches_focal_lengths_and_small_spots() -> None:
    size = (320, 240)

    def chance(seen: Matches2D3D, focal_unknown: bool = False) -> float:
        return pnp_log10_nfa(seen, solve_pnp(seen, MAP_K, 3.0), size, 3.0, focal_unknown)

    one = chance(matches_of(100))
    assert one < -100
    assert one < chance(matches_of(100), True) and one < chance(matches_of(100, copies=3))
    exact = matches_of(100)
    spot = replace(exact, pixels=0.2 * exact.pixels + 100)
    spot_K = np.array(
        [[0.2 * MAP_K[0, 0], 0, 0.2 * MAP_K[0, 2] + 100], [0, 0.2 * MAP_K[1, 1], 0.2 * MAP_K[1, 2] + 100], [0, 0, 1]]
    )
    found = solve_pnp(spot, spot_K, 0.6)
    # the same number of agreeing keypoints of as many all over the photo would be surer
    assert pnp_log10_nfa(spot, found, size, 0.6, False) > pnp_log10_nfa(exact, found, size, 0.6, False) + 20
    assert pnp_log10_nfa(matches_of(10), None, size, 3.0, False) == np.inf
    assert chance(matches_of(20)) == np.inf  # ten agree, too few
