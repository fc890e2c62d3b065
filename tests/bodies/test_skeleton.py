"""Anny's skeleton: the same places as the body's own forward pass, and exact derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import FREE_JOINTS, FREE_SHAPE, INDEX, LANDMARKS, AnnySkeleton
from dune_cli.geometry.poses import rotation_from_rotvec


@pytest.fixture(scope="module")
def skeleton() -> AnnySkeleton:
    return AnnySkeleton(load_anny("light"), shifted=False)


def some_bodies(skeleton: AnnySkeleton, people: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = np.tile(skeleton.mean_shape, (people, 1))
    shape[:, skeleton.shape_columns] = rng.uniform(0.1, 0.9, (people, len(FREE_SHAPE)))
    return rotation_from_rotvec(rng.normal(size=(people, len(FREE_JOINTS), 3)) * 0.3), shape


def test_joints_and_surface_points_are_those_of_the_body(skeleton: AnnySkeleton) -> None:
    rotations, shape = some_bodies(skeleton)
    offsets = skeleton.offsets(shape)
    posed = skeleton.forward(rotations, offsets)
    body = skeleton.body
    full = skeleton.body_rotations(rotations, offsets)
    out = body(torch.from_numpy(full).float(), torch.from_numpy(shape).float())
    joints = out.joints.double().numpy()
    assert np.abs(joints[:, skeleton.free] - posed.joints).max() < 1e-5
    for landmark, joint in {"left_wrist": "wrist.L", "right_knee": "lowerleg01.R", "left_pinky": "finger5-1.L"}.items():
        place = joints[:, body.joint_names.index(joint)]
        assert np.abs(place - posed.landmarks[:, INDEX[landmark]]).max() < 1e-5
    nearest = [
        np.linalg.norm(out.vertices.double().numpy() - posed.landmarks[:, None, INDEX[name]], axis=-1).min(1).max()
        for name in ("nose", "left_ear", "right_heel", "head_top")
    ]
    assert max(nearest) < 1e-5  # of landmarks on the surface, whose skin follows one joint


def test_the_reference_axes_are_upright(skeleton: AnnySkeleton) -> None:
    """At rest: x to the left, y to the back, z up."""
    offsets = skeleton.offsets(skeleton.mean_shape[None])
    rest = skeleton.forward(np.tile(np.eye(3), (1, len(FREE_JOINTS), 1, 1)), offsets).landmarks[0]
    assert rest[INDEX["left_hip"], 0] > 0.05 > -0.05 > rest[INDEX["right_hip"], 0]
    assert rest[INDEX["head_top"], 2] > 0.5 and rest[INDEX["left_heel"], 2] < -0.7
    assert rest[INDEX["nose"], 1] < rest[INDEX["left_ear"], 1] - 0.05
    assert offsets.stature[0] == pytest.approx(rest[INDEX["head_top"], 2] - rest[INDEX["left_heel"], 2], abs=0.05)


def test_slopes_are_derivatives(skeleton: AnnySkeleton) -> None:
    _, shape = some_bodies(skeleton)
    family, free = skeleton.family(shape), shape[:, skeleton.shape_columns]
    value, slopes = family.offsets_and_slopes(free)
    assert np.array_equal(value.joints, family.offsets(free).joints)
    for column, slope in enumerate(slopes):
        step = np.zeros(len(FREE_SHAPE))
        step[column] = 1e-5
        ahead, behind = family.offsets(free + step), family.offsets(free - step)
        for name in ("joints", "landmarks", "stature"):
            numeric = (getattr(ahead, name) - getattr(behind, name)) / 2e-5
            assert np.abs(numeric - getattr(slope, name)).max() < 1e-8


def test_blazepose_puts_landmarks_beside_the_joints(skeleton: AnnySkeleton) -> None:
    shifted = AnnySkeleton(skeleton.body)
    rotations, shape = some_bodies(skeleton)
    offsets = skeleton.offsets(shape)
    apart = np.linalg.norm(
        shifted.forward(rotations, shifted.offsets(shape)).landmarks - skeleton.forward(rotations, offsets).landmarks,
        axis=-1,
    )
    assert apart[:, INDEX["left_shoulder"]] == pytest.approx(np.hypot(0.019, np.hypot(0.002, 0.026)), abs=1e-9)
    assert (apart[:, INDEX["head_top"]] < 1e-12).all() and apart.max() < 0.07
    left, right = (LANDMARKS.index(f"{side}_ear") for side in ("left", "right"))
    assert np.allclose(apart[:, left], apart[:, right])


def test_another_rig_is_refused() -> None:
    with pytest.raises(ValueError, match="rig 'light'"):
        AnnySkeleton(load_anny("full"))
