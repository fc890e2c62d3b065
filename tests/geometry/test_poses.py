"""Laws of rigid poses and rotations, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dune_cli.geometry import poses

numbers = st.floats(-10, 10, allow_subnormal=False)
batches = array_shapes(min_dims=0, max_dims=3, max_side=3)


@st.composite
def rotations(draw: st.DrawFn, batch: tuple[int, ...]) -> np.ndarray:
    quaternion = draw(arrays(np.float64, (*batch, 4), elements=st.floats(-1, 1, allow_subnormal=False)))
    short = np.linalg.norm(quaternion, axis=-1, keepdims=True) < 1e-3
    return poses.rotation_from_quaternion(np.where(short, [1.0, 0, 0, 0], quaternion))


@st.composite
def rigid(draw: st.DrawFn, batch: tuple[int, ...]) -> np.ndarray:
    translation = draw(arrays(np.float64, (*batch, 3), elements=numbers))
    return poses.from_rotation_translation(draw(rotations(batch)), translation)


@given(st.data(), batches)
def test_inverse_cancels_from_both_sides(data: st.DataObject, batch: tuple[int, ...]) -> None:
    pose = data.draw(rigid(batch))
    identity = np.broadcast_to(np.eye(4), pose.shape)
    np.testing.assert_allclose(poses.compose(pose, poses.inverse(pose)), identity, atol=1e-12)
    np.testing.assert_allclose(poses.compose(poses.inverse(pose), pose), identity, atol=1e-12)
    np.testing.assert_allclose(poses.inverse(poses.inverse(pose)), pose, atol=1e-12)


@given(st.data(), batches)
def test_applying_a_composition_is_applying_one_after_the_other(data: st.DataObject, batch: tuple[int, ...]) -> None:
    a_from_b, b_from_c = data.draw(rigid(batch)), data.draw(rigid(batch))
    points = data.draw(arrays(np.float64, (*batch, 5, 3), elements=numbers))
    once = poses.transform_points(poses.compose(a_from_b, b_from_c), points)
    twice = poses.transform_points(a_from_b, poses.transform_points(b_from_c, points))
    np.testing.assert_allclose(once, twice, atol=1e-11)


@given(st.data(), array_shapes(min_dims=0, max_dims=3, max_side=3))
def test_one_pose_moves_points_of_any_shape(data: st.DataObject, shape: tuple[int, ...]) -> None:
    pose = data.draw(rigid(()))
    points = data.draw(arrays(np.float64, (*shape, 3), elements=numbers))
    homogeneous = np.concatenate([points, np.ones((*shape, 1))], axis=-1)
    np.testing.assert_allclose(
        poses.transform_points(pose, points), np.einsum("ij,...j->...i", pose, homogeneous)[..., :3], atol=1e-12
    )


@given(st.data(), batches)
def test_quaternions_go_round(data: st.DataObject, batch: tuple[int, ...]) -> None:
    rotation = data.draw(rotations(batch))
    quaternion = poses.quaternion_from_rotation(rotation)
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=-1), np.ones(batch), atol=1e-14)
    assert (quaternion[..., 0] >= 0).all()
    np.testing.assert_allclose(poses.rotation_from_quaternion(quaternion), rotation, atol=1e-13)


@given(arrays(np.float64, (4,), elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_a_quaternion_and_its_opposite_are_one_rotation(quaternion: np.ndarray) -> None:
    back = poses.quaternion_from_rotation(poses.rotation_from_quaternion(quaternion))
    assert abs(abs(back @ quaternion) / np.linalg.norm(quaternion) - 1) < 1e-13


def axis_of(values: list[float]) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


axes = st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) > 0.1).map(axis_of)


@given(axes, st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.5, 2.0, np.pi - 1e-6, np.pi - 1e-9, np.pi]))
def test_the_angle_keeps_its_digits_near_zero_and_pi(axis: np.ndarray, angle: float) -> None:
    rotation = poses.rotation_from_rotvec(angle * axis)
    assert abs(poses.rotation_angle(rotation) - angle) < 4e-15 + 1e-15 * angle
    pose = poses.from_rotation_translation(rotation, np.ones(3))
    assert poses.rotation_angle(pose) == poses.rotation_angle(rotation)
    assert abs(np.linalg.norm(poses.rotvec_from_rotation(rotation)) - angle) < 4e-15


@given(axes, st.floats(0, np.pi - 1e-3))
def test_rotation_vectors_go_round(axis: np.ndarray, angle: float) -> None:
    rotvec = angle * axis
    np.testing.assert_allclose(poses.rotvec_from_rotation(poses.rotation_from_rotvec(rotvec)), rotvec, atol=1e-12)


@given(axes, axes, st.floats(0, 3))
def test_turning_a_vector_turns_it_by_the_angle(axis: np.ndarray, other: np.ndarray, angle: float) -> None:
    across = np.cross(axis, other)
    if np.linalg.norm(across) < 1e-3:
        return
    turned = poses.rotation_from_rotvec(angle * axis) @ across
    assert abs(poses.vector_angle(across, turned) - angle) < 1e-12


@settings(max_examples=50)
@given(st.data())
def test_the_nearest_rotation_of_a_rotation_is_itself_and_noise_moves_it_little(data: st.DataObject) -> None:
    rotation = data.draw(rotations((2,)))
    noise = data.draw(arrays(np.float64, (2, 3, 3), elements=st.floats(-1e-3, 1e-3)))
    np.testing.assert_allclose(poses.nearest_rotation(rotation), rotation, atol=1e-12)
    near = poses.nearest_rotation(rotation + noise)
    np.testing.assert_allclose(near @ np.swapaxes(near, -1, -2), np.broadcast_to(np.eye(3), near.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(near), 1, atol=1e-12)
    assert np.abs(near - rotation).max() < 1e-2


def test_a_zero_quaternion_is_refused() -> None:
    with pytest.raises(ValueError, match="zero quaternion"):
        poses.rotation_from_quaternion(np.zeros(4))
