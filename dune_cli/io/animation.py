"""Moving bodies, as the animation formats write them: a skinned mesh at rest, and its joints' rotations over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.io.meshes import Frustum, check_points

HOLD_S = 1e-3  # a held pose ends this long before the next key, or half the way to it


@dataclass(frozen=True)
class SkinnedMotion:
    """A body and its motion, in metres, OpenCV axes (x right, y down, z forward), float64.

    name, id, color (3,) uint8 sRGB. joint_names, parents: J joints, parents before children; the root is joint 0 and
    its parent -1. At rest: vertices (V, 3) and joints (J, 3), faces (F, 3), weights (V, J) with rows that sum to 1.
    frames (T,): indices of the frames with the body, ascending, among all frames of the clip; times_s (T,) of these.
    rotations (T, J, 3, 3): relative to the parent joint, from the rest pose; translation (T, 3): of the root joint.
    A posed vertex is sum over joints of weight · (G (vertex - rest joint) + placed joint), G the product of rotations
    from the root on (linear blend skinning).
    """

    name: str
    id: int
    color: np.ndarray
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    vertices: np.ndarray
    joints: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    frames: np.ndarray
    times_s: np.ndarray
    rotations: np.ndarray
    translation: np.ndarray

    def __post_init__(self) -> None:
        count, keys = len(self.joint_names), len(self.frames)
        check_points(self.vertices, self.name)
        wanted = {
            "parents": (count,),
            "joints": (count, 3),
            "weights": (len(self.vertices), count),
            "times_s": (keys,),
            "rotations": (keys, count, 3, 3),
            "translation": (keys, 3),
        }
        for name, shape in wanted.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{self.name}: {name} must be {shape}, got {np.shape(getattr(self, name))}")
        if not keys or (np.diff(self.frames) <= 0).any() or (np.diff(self.times_s) <= 0).any():
            raise ValueError(f"{self.name}: a motion needs frames whose indices and times grow")

    @property
    def offsets(self) -> np.ndarray:
        """(J, 3): each resting joint from its parent; the root's is 0."""
        above = [max(parent, 0) for parent in self.parents]
        return self.joints - self.joints[above]

    def gaps(self) -> list[int]:
        """The keys (places in `frames`) after which frames without the body follow, the last one not."""
        return np.flatnonzero(np.diff(self.frames) > 1).tolist()

    def not_seen_s(self) -> list[tuple[float, float]]:
        """For each gap the times of the last frame with the body before it and of the first one after it."""
        return [(float(self.times_s[key]), float(self.times_s[key + 1])) for key in self.gaps()]

    def held_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """times (N,) in seconds and keys (N,): every key at its time, and at the end of each gap the key before it
        again, so that linear interpolation holds the pose through the gap."""
        times, keys = list(self.times_s), list(range(len(self.times_s)))
        for key in reversed(self.gaps()):
            before, after = self.times_s[key], self.times_s[key + 1]
            times.insert(key + 1, after - min(HOLD_S, (after - before) / 2))
            keys.insert(key + 1, key)
        return np.array(times), np.array(keys)


@dataclass(frozen=True)
class AnimationData:
    """What an animation format writes: `motions`, and `cameras` that stand still. OpenCV axes."""

    motions: Sequence[SkinnedMotion]
    cameras: Sequence[Frustum] = ()


def strongest_influences(weights: np.ndarray, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest weights of each vertex: joints (V, count) and weights (V, count) whose rows sum to 1, largest
    first. Joints of zero weights are 0. weights: (V, J)."""
    joints = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    kept = np.take_along_axis(weights, joints, 1)
    kept = kept / kept.sum(1, keepdims=True)
    return np.where(kept > 0, joints, 0), kept
