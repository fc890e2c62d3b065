"""A map of few photos whose focal length is off localizes within what it states: bundle adjustment, its modes, the
points that go with them, and the covariance of a pose, together."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.evaluation.metrics import fit_cameras
from dune_cli.geometry import cameras, poses, triangulation
from dune_cli.geometry.absolute_pose import RefinedPose, refine_absolute_pose
from dune_cli.geometry.bundle_adjustment import AdjustedBundle, Bundle, Priors, adjust_bundle, point_shifts
from dune_cli.geometry.sim3 import scale_of

WIDTH, HEIGHT, NOISE_PX = 640, 480, 0.4
TRUE = cameras.K_from_focal(600.0, WIDTH, HEIGHT)


def look(rng: np.random.Generator, x: float, turn: float) -> np.ndarray:
    rotvec = turn * (0.03 * rng.standard_normal(3) + (0, -0.2 * x, 0))
    centre = np.array([x, 0, 0]) + 0.15 * rng.standard_normal(3)
    return poses.from_rotation_translation(poses.rotation_from_rotvec(rotvec), centre)


def seen(rng: np.random.Generator, points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    exact = cameras.project(poses.transform_points(poses.inverse(pose), points), TRUE)
    return exact + NOISE_PX * rng.standard_normal(exact.shape)


def mapped(
    seed: int, views: int, prior_px: float, turn: float
) -> tuple[AdjustedBundle, np.ndarray, np.ndarray, np.ndarray]:
    """The map out of a start with the prior's focal length; pixels, true poses and true points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (120, 3))
    true = np.stack([look(rng, x, turn) for x in np.linspace(-0.8, 0.8, views)])
    pixels = np.stack([seen(rng, points, pose) for pose in true])
    view, point = (index.ravel() for index in np.meshgrid(np.arange(views), np.arange(120), indexing="ij"))
    prior = cameras.K_from_focal(prior_px, WIDTH, HEIGHT)
    # as a lens of the prior's length sees it: depths as many times longer
    stretch = prior_px / 600.0
    start = true.copy()
    start[:, 2, 3] *= stretch
    bundle = Bundle(
        prior[None], np.zeros((1, 4)), np.zeros(1, bool), np.array([float(WIDTH)]), np.zeros(views, np.int64), start,
        points * (1, 1, stretch), view, point, pixels.reshape(-1, 2),
    )  # fmt: skip
    found = adjust_bundle(bundle, Priors(np.array([0.4]), np.array([[0.05, 0, 0, 0]])), prior[None])
    assert found is not None
    return found, pixels, true, points


def located(found: AdjustedBundle, pixels: np.ndarray, query_pixels: np.ndarray, query: np.ndarray) -> RefinedPose:
    """By the points of the first view, triangulated with the others, and a query whose camera is known."""
    bundle = found.bundle
    cam_from_world = np.stack([poses.inverse(pose) for pose in bundle.world_from_cam])
    K = np.repeat(bundle.K, len(pixels), axis=0)
    everyone = np.arange(pixels.shape[1])
    rays = [
        triangulation.ViewObservations(everyone, pixels[i], K[i], cam_from_world[i], 1.0) for i in range(1, len(pixels))
    ]
    star = triangulation.triangulate_with_known_poses(pixels[0], K[0], cam_from_world[0], 1.0, rays, 4.0)
    radial = np.repeat(bundle.distortion[:, 0], len(pixels))
    modes = np.swapaxes(found.modes, 0, 1)
    shifts = point_shifts(star.points_world, star.tracks, star.track_pixels, K, radial, cam_from_world, modes)
    return refine_absolute_pose(
        star.points_world, query_pixels[star.rows], TRUE, poses.inverse(query), 4.0, shifts=shifts
    )


def errors_in_deviations(seed: int, views: int, prior_px: float, turn: float) -> tuple[float, float]:
    """How far off the query's position is, in deviations as stated, and as the matches alone would state them."""
    found, pixels, true, points = mapped(seed, views, prior_px, turn)
    rng = np.random.default_rng(1000 + seed)
    query = look(rng, 0.3, turn)
    fit = fit_cameras(true, found.bundle.world_from_cam)
    start = np.linalg.inv(fit) @ query
    start[:3, :3] /= scale_of(np.linalg.inv(fit))
    pose = located(found, pixels, seen(rng, points, query), start)
    centre = poses.inverse(pose.cam_from_world)[:3, 3]
    off = np.linalg.inv(fit) @ np.append(query[:3, 3], 1) - np.append(centre, 1)
    stated, alone = pose.covariance[3:, 3:], (pose.covariance - pose.from_calibration)[3:, 3:]
    return tuple(float(np.sqrt(off[:3] @ np.linalg.solve(part, off[:3]) / 3)) for part in (stated, alone))


@pytest.mark.parametrize(("views", "turn"), [(3, 1.0), (4, 0.2)])
def test_places_are_within_what_is_stated(views: int, turn: float) -> None:
    scores = [errors_in_deviations(seed, views, prior_px, turn) for seed in range(3) for prior_px in (450.0, 800.0)]
    stated, alone = np.array(scores).T
    assert np.mean(stated < 3) >= 0.85 and np.median(stated) < 1.8
    assert np.median(stated) < np.median(alone)


def test_what_the_photos_tell_does_not_depend_on_the_guess() -> None:
    lengths = [float(mapped(3, 3, prior_px, 1.0)[0].bundle.K[0, 0, 0]) for prior_px in (450.0, 800.0)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.02) and lengths[0] == pytest.approx(600, rel=0.1)
