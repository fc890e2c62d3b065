"""Anny in made-up poses before several cameras, as networks with small errors would see it."""

from __future__ import annotations

import numpy as np

from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fitting import fit_anny, shape_of_stature
from dune_cli.bodies.people_in_views import PeopleSeen
from dune_cli.bodies.skeleton import LANDMARKS, AnnySkeleton
from dune_cli.geometry.cameras import project
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec, transform_points
from support.anny_poses import K, PosedPeople

MIDDLE = np.array([0, 0.2, 4.5])  # of the people of `posed_people`


def ring(*turns_deg: float) -> np.ndarray:
    """(V, 4, 4): cam_from_world, in metres, of cameras around MIDDLE; that of 0 degrees is the world."""
    rotations = rotation_from_rotvec(np.radians(turns_deg)[:, None] * np.array([0, 1.0, 0]))
    centres = MIDDLE + (rotations @ (0 - MIDDLE)[:, None])[..., 0]
    return inverse(from_rotation_translation(rotations, centres))


def people_seen(
    skeleton: AnnySkeleton,
    people: PosedPeople,
    cam_from_world: np.ndarray,
    unit_m: float = 1.0,
    noise_px: float = 2.0,
    stature: tuple[float, float] = (1.70, 0.09),
    missing: tuple[tuple[int, int], ...] = (),
) -> tuple[PeopleSeen, np.ndarray]:
    """What the cameras see, in a scene whose unit is `unit_m` metres, and who each body is (O,). The order of the
    people differs from view to view. missing: (view, person) that is not seen."""
    rng = np.random.default_rng(5)
    view, truth = [], []
    for number in range(len(cam_from_world)):
        order = np.roll(np.arange(len(people.stature)), number)
        for one in order:
            if (number, int(one)) not in missing:
                view.append(number)
                truth.append(int(one))
    view, truth = np.array(view), np.array(truth)
    points = transform_points(cam_from_world[view], people.landmarks[truth])
    pixels = project(points, K) + rng.normal(size=(len(view), len(LANDMARKS), 2)) * noise_px
    weights, count = np.ones((len(view), len(LANDMARKS))), len(view)
    mean, deviation = np.full(count, stature[0]), np.full(count, stature[1])
    Ks = np.tile(K, (count, 1, 1))
    directions = points + rng.normal(size=points.shape) * 0.01
    targets = FitTargets(mean, deviation, Ks, pixels, weights, directions, weights)
    single = fit_anny(skeleton, targets, shape=shape_of_stature(skeleton, mean))
    poses = cam_from_world[view].copy()
    poses[:, :3, 3] /= unit_m
    unknown = np.full(count, np.nan)
    return PeopleSeen(view, poses, targets, single, unknown, unknown), truth
