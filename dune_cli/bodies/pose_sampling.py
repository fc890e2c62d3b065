"""Poses of Anny by chance within its joint limits, and poses seen in a mirror."""

from __future__ import annotations

import numpy as np

from dune_cli.bodies.fit_start import HINGES, UPRIGHT, hinge_axes
from dune_cli.bodies.fit_terms import joint_limits
from dune_cli.bodies.skeleton import FREE_JOINTS, AnnySkeleton
from dune_cli.geometry.poses import rotation_from_rotvec

# standard deviation of a joint's rotation vector as a share of its limit, by the beginning of its name; others: 0.2
_SPREAD = {"upperarm01": 0.35, "upperleg01": 0.3, "head": 0.3, "spine": 0.25, "neck": 0.15}
_LEAN_RAD, _LEAN_FAR_RAD, _FAR_SHARE = 0.2, 1.5, 0.15  # of the trunk from upright, and how often it leans far
_HINGE_STRAIGHT = 0.3  # how often a limb is nearly straight
MIRROR = np.diag([-1.0, 1.0, 1.0])
_OTHER_SIDE = np.array(
    [
        FREE_JOINTS.index({"L": f"{name[:-2]}.R", "R": f"{name[:-2]}.L"}.get(name[-1] if name[-2] == "." else "", name))
        for name in FREE_JOINTS
    ]
)


def sample_poses(skeleton: AnnySkeleton, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotations (P, F, 3, 3) of FREE_JOINTS for bodies of shapes (P, 6), as `AnnySkeleton.forward` takes them.

    Each joint turns by a Gaussian within its limit, elbows and knees about their hinges alone. The body looks any way
    round, mostly upright, and now and then leans far.
    """
    people, joints = len(shape), len(FREE_JOINTS)
    limits = joint_limits()
    spread = np.array([next((v for k, v in _SPREAD.items() if name.startswith(k)), 0.2) for name in FREE_JOINTS])
    rotvec = rng.normal(size=(people, joints, 3)) * (limits * spread)[:, None]
    length = np.linalg.norm(rotvec, axis=-1)
    rotvec *= np.minimum(1, limits / np.maximum(length, 1e-9))[..., None]
    axes, least = hinge_axes(skeleton, skeleton.offsets(shape))
    for number, (name, *_) in enumerate(HINGES):
        slot = FREE_JOINTS.index(name)
        bend = np.where(rng.random(people) < _HINGE_STRAIGHT, 0.2, 0.8) * limits[slot] * rng.random(people)
        rotvec[:, slot] = axes[:, number] * (least[:, number] + bend)[:, None]
    rotations = rotation_from_rotvec(rotvec)
    rotations[:, 0] = sample_directions(people, rng) @ UPRIGHT
    return rotations


def sample_directions(people: int, rng: np.random.Generator) -> np.ndarray:
    """(P, 3, 3): turns about the camera's vertical by any angle, then leans about a horizontal axis."""
    about = rng.uniform(-np.pi, np.pi, people)
    spread = np.where(rng.random(people) < _FAR_SHARE, _LEAN_FAR_RAD, _LEAN_RAD)
    lean = rng.normal(size=(people, 3)) * spread[:, None] * [1, 0, 1]
    return rotation_from_rotvec(lean) @ rotation_from_rotvec(about[:, None] * np.array([0.0, 1, 0]))


def mirrored(rotations: np.ndarray) -> np.ndarray:
    """Rotations (..., F, 3, 3) of FREE_JOINTS, the root's in camera axes, of the person whose picture is flipped."""
    return MIRROR @ rotations[..., _OTHER_SIDE, :, :] @ MIRROR
