"""BVH (Biovision hierarchy): a skeleton at rest and its motion, as text (Meredith and Maddock, "Motion Capture File
Formats Explained", University of Sheffield CS-01-11, 2001, section 3).

Metres, y up, z backward (glTF's axes). The root has six channels, other joints three rotations; rotations are written
in the order Z, X, Y and mean Rz · Rx · Ry. Each bone's rest direction is its OFFSET from its parent.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from dune_cli.io.animation import AnimationData, SkinnedMotion
from dune_cli.io.outputs import atomic_path, sibling

CONTENT = ()
ANIMATION_AXES = "y up, z backward"
ROTATIONS = "Zrotation Xrotation Yrotation"
ROOT_CHANNELS = f"CHANNELS 6 Xposition Yposition Zposition {ROTATIONS}"
SHARE_OF_TIP = 0.5  # an End Site lies this share of the last bone further on
FLIP = np.array([1.0, -1.0, -1.0])  # from OpenCV's axes


def write_animation(path: Path, data: AnimationData) -> list[Path]:
    """One file a motion: `path` itself for one, NAME_000.bvh, ... by the persons' ids for several. Returns the files;
    none without a motion. BVH holds no surface and no camera."""
    several = len(data.motions) > 1
    files = [sibling(path, f"_{motion.id:03d}{path.suffix}") if several else path for motion in data.motions]
    for file, motion in zip(files, data.motions):
        with atomic_path(file) as temporary:
            temporary.write_text("\n".join(_lines(motion)) + "\n", encoding="ascii", newline="\n")
    return files


def uniform_keys(motion: SkinnedMotion) -> tuple[float, np.ndarray]:
    """BVH has one frame time: (seconds, keys (N,)), from the first key to the last.

    The frame time is the median step between neighbouring frames. At each time stands the key that is nearest among
    those seen, and through a gap the one before it.
    """
    if len(motion.frames) == 1:
        return 1 / 30, np.zeros(1, int)
    steps = np.diff(motion.times_s) / np.diff(motion.frames)
    step_s = float(np.median(steps))
    count = round(float(motion.times_s[-1] - motion.times_s[0]) / step_s) + 1
    times, keys = motion.held_keys()
    wanted = motion.times_s[0] + step_s * np.arange(count)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearer = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    held = keys[after - 1] == keys[after]  # inside a gap
    return step_s, keys[np.where(held, after - 1, nearer)]


def _lines(motion: SkinnedMotion) -> Iterator[str]:
    yield "HIERARCHY"
    order: list[int] = []
    yield from _joint_lines(motion, motion.offsets * FLIP, 0, "", order)
    step_s, keys = uniform_keys(motion)
    rotations = (FLIP[:, None] * motion.rotations * FLIP)[keys]
    angles = _continuous_zxy(rotations)
    yield "MOTION"
    yield f"Frames: {len(keys)}"
    yield f"Frame Time: {step_s:.8f}"
    rows = np.concatenate([motion.translation[keys] * FLIP, np.degrees(angles[:, order]).reshape(len(keys), -1)], 1)
    for row in rows + 0.0:
        yield " ".join(f"{value:.6f}" for value in row)


def _joint_lines(
    motion: SkinnedMotion, offsets: np.ndarray, joint: int, indent: str, order: list[int]
) -> Iterator[str]:
    """A joint and those below it. `order` gets the joints as they are listed, which is the order of the channels."""
    order.append(joint)
    yield f"{indent}{'ROOT' if joint == 0 else 'JOINT'} {motion.joint_names[joint]}"
    yield f"{indent}{{"
    yield f"{indent}  OFFSET {_numbers(offsets[joint])}"
    yield f"{indent}  {ROOT_CHANNELS if joint == 0 else f'CHANNELS 3 {ROTATIONS}'}"
    children = [other for other, parent in enumerate(motion.parents) if parent == joint]
    for child in children:
        yield from _joint_lines(motion, offsets, child, f"{indent}  ", order)
    if not children:
        yield f"{indent}  End Site"
        yield f"{indent}  {{"
        yield f"{indent}    OFFSET {_numbers(offsets[joint] * SHARE_OF_TIP)}"
        yield f"{indent}  }}"
    yield f"{indent}}}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value + 0.0:.6f}" for value in values)


def _continuous_zxy(rotations: np.ndarray) -> np.ndarray:
    """(T, J, 3) radians z, x, y with Rz · Rx · Ry = rotations (T, J, 3, 3), without jumps where they can be avoided.

    Of the two triples of a rotation, (z, x, y) and (z + pi, pi - x, y + pi), and their whole turns, the one nearest to
    the frame before.
    """
    shape = rotations.shape[:-2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at x = 90 degrees z and y are not unique; any triple is right
        angles = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_euler("ZXY").reshape(*shape, 3)
    other = np.stack([angles[..., 0] + np.pi, np.pi - angles[..., 1], angles[..., 2] + np.pi], -1)
    for frame in range(1, len(angles)):
        before = angles[frame - 1]
        near, far = (_unwrapped(choice[frame], before) for choice in (angles, other))
        closer = np.abs(far - before).sum(-1) < np.abs(near - before).sum(-1)
        angles[frame] = np.where(closer[:, None], far, near)
    return angles


def _unwrapped(angles: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The angles plus the whole turns that bring them nearest to `before`."""
    return angles - 2 * np.pi * np.round((angles - before) / (2 * np.pi))
