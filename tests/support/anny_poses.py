"""Anny in made-up poses in front of a camera, with joints as a network would see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.fit_start import HINGES, UPRIGHT, hinge_axes
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.skeleton import FREE_JOINTS, LANDMARKS, AnnySkeleton
from dune_cli.geometry.cameras import K_from_fov, project
from dune_cli.geometry.poses import rotation_from_rotvec

K = K_from_fov(55, 640, 480)
# deviation of each joint's turn, radians
SPREAD = {
    **{"root": 0.0, "spine": 0.05, "neck": 0.05, "head": 0.15, "clavicle": 0.03, "shoulder01": 0.03},
    **{"upperarm01": 0.4, "lowerarm01": 0.0, "wrist": 0.1, "upperleg01": 0.25, "lowerleg01": 0.0, "foot": 0.1},
}


@dataclass(frozen=True)
class PosedPeople:
    """P people: rotations (P, F, 3, 3), shape (P, 6), translation (P, 3), stature (P,), landmarks (P, M, 3) in the
    camera's frame, pixels (P, M, 2)."""

    rotations: np.ndarray
    shape: np.ndarray
    translation: np.ndarray
    stature: np.ndarray
    landmarks: np.ndarray
    pixels: np.ndarray


def posed_people(skeleton: AnnySkeleton, people: int, seed: int) -> PosedPeople:
    """Adults who stand, sit and reach, seen from all sides, 3.5 to 5.5 m away."""
    rng = np.random.default_rng(seed)
    spread = np.array([next(v for k, v in SPREAD.items() if name.startswith(k)) for name in FREE_JOINTS])
    turns = rng.normal(size=(people, len(FREE_JOINTS), 3)) * spread[:, None]
    shape = np.tile(skeleton.mean_shape, (people, 1))
    names = skeleton.body.shape_names
    shape[:, names.index("gender")] = rng.uniform(0.2, 0.8, people)
    shape[:, names.index("height")] = rng.uniform(0.33, 0.46, people)
    offsets = skeleton.offsets(shape)
    axes, least = hinge_axes(skeleton, offsets)
    for number, (name, *_) in enumerate(HINGES):
        bend = rng.uniform(0, 1.3, people) if "arm" in name else rng.exponential(0.35, people)
        turns[:, FREE_JOINTS.index(name)] = axes[:, number] * (least[:, number] * 0.8 + bend)[:, None]
    rotations = rotation_from_rotvec(turns)
    yaw = rng.uniform(-np.pi, np.pi, people)
    rotations[:, 0] = rotation_from_rotvec(yaw[:, None] * np.array([0, 1.0, 0])) @ UPRIGHT
    z = rng.uniform(3.5, 5.5, people)
    translation = np.stack([rng.uniform(-0.35, 0.35, people) * z, rng.uniform(-0.15, 0.25, people) * z, z], 1)
    landmarks = skeleton.forward(rotations, offsets).landmarks + translation[:, None]
    return PosedPeople(rotations, shape, translation, offsets.stature, landmarks, project(landmarks, K))


def seen(people: PosedPeople, seed: int, noise_px: float = 2.0, noise_m: float = 0.01) -> FitTargets:
    """Landmarks in pixels, and their directions in 3-D, both with noise; the height is known."""
    rng = np.random.default_rng(seed)
    weights = np.ones((len(people.stature), len(LANDMARKS)))
    return FitTargets(
        people.stature,
        np.full(len(people.stature), 0.005),
        K,
        people.pixels + rng.normal(size=people.pixels.shape) * noise_px,
        weights,
        people.landmarks + rng.normal(size=people.landmarks.shape) * noise_m,
        weights,
    )
