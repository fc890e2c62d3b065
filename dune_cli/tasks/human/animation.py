"""The people of a clip as animations: one skinned Anny and one motion a person, written as GLB or BVH."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.body import person_name
from dune_cli.errors import UserError
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.geometry.trajectory_smoothing import KalmanSmootherConfig, smooth_rotations, smooth_values
from dune_cli.io import formats
from dune_cli.io.animation import AnimationData, SkinnedMotion
from dune_cli.io.meshes import Frustum
from dune_cli.io.rendering import distinct_color
from dune_cli.io.video import Frame
from dune_cli.tasks.human.files import BodiedModel
from dune_cli.tasks.human.fitted import FittedPerson
from dune_cli.tasks.human.model import Person
from dune_cli.tasks.human.photo import PhotoPeople

CONFIDENT = 0.5  # fit_confidence from which a frame counts for a person's shape
ACROSS = KalmanSmootherConfig(deviation=0.02, acceleration=4.0, speed=2.0)
ALONG = KalmanSmootherConfig(deviation=0.15, acceleration=4.0, speed=2.0)
ROTATIONS = KalmanSmootherConfig(deviation=0.1, acceleration=25.0, speed=5.0)


@dataclass(frozen=True)
class MotionSmoothing:
    """The Kalman smoother of people's motion (geometry/trajectory_smoothing.py). across: the root's position across the
    camera's axis, along: along it, metres; rotations: of each joint, radians. A single frame tells depth far worse than
    the other two."""

    across: KalmanSmootherConfig = ACROSS
    along: KalmanSmootherConfig = ALONG
    rotations: KalmanSmootherConfig = ROTATIONS

    def smooth(self, motion: SkinnedMotion) -> SkinnedMotion:
        """The motion with smoothed rotations and translation, at the same times."""
        across = smooth_values(motion.times_s, motion.translation[:, :2], self.across)
        along = smooth_values(motion.times_s, motion.translation[:, 2:], self.along)
        rotations = smooth_rotations(motion.times_s, motion.rotations, self.rotations)
        return replace(motion, translation=np.concatenate([across, along], 1), rotations=rotations)

    def as_json(self) -> dict[str, Any]:
        """For the JSON beside an animation."""
        return {
            "method": "constant-velocity Kalman filter, Rauch-Tung-Striebel smoother",
            "lag_s": 0.0,
            "deviation": {
                "across_m": self.across.deviation,
                "along_m": self.along.deviation,
                "rotation_rad": self.rotations.deviation,
            },
            "acceleration": {
                "across_m_s2": self.across.acceleration,
                "along_m_s2": self.along.acceleration,
                "rotation_rad_s2": self.rotations.acceleration,
            },
        }


@dataclass(frozen=True)
class AnimationOptions:
    """person: whose motion is written: an id, "longest" (in the most frames) or "all". smoothing: None for none."""

    person: str = "all"
    smoothing: MotionSmoothing | None = None

    def __post_init__(self) -> None:
        if self.person not in ("all", "longest") and not (self.person.isascii() and self.person.isdecimal()):
            raise UserError(
                f"--person {self.person!r} is not known; allowed: all, longest, or the number of a person such as 0"
            )

    def choose(self, seen: dict[int, int]) -> list[int]:
        """The ids to write, of people with their numbers of frames. UserError for an id that is not there."""
        if self.person == "all" or not seen:
            return sorted(seen)
        if self.person == "longest":
            return [min(seen, key=lambda number: (-seen[number], number))]
        if int(self.person) not in seen:
            raise UserError(
                f"--person {self.person} is not in the clip, whose people are {', '.join(map(str, sorted(seen)))}; "
                "name one of them, or 'longest'"
            )
        return [int(self.person)]


@dataclass(frozen=True)
class PoseSample:
    """Of one person in one frame: what the animation keeps."""

    frame: int
    time_s: float
    rotvec: np.ndarray
    translation: np.ndarray
    shape: np.ndarray
    confidence: float

    @classmethod
    def of(cls, frame: int, time_s: float, person: Person) -> PoseSample:
        shape = np.array([float(value) for value in person.shape.values()])
        confidence = person.fit_confidence if isinstance(person, FittedPerson) else 1.0
        rotvec, translation = person.rotvec.double().numpy(), person.translation.double().numpy()
        return cls(frame, time_s, rotvec, translation, shape, confidence)


class MotionRecorder:
    """Collects the people of successive frames; `write` writes their animation."""

    def __init__(self, model: BodiedModel, options: AnimationOptions) -> None:
        """UserError for a body that is not Anny."""
        if not isinstance(model.body, Anny):
            raise UserError(
                f"an animation needs the body Anny, and {model.source.name} has {model.body.name}, whose skin depends "
                "on its pose; take --model bundled or multihmr-672-l-anny, or a folder of meshes with -o"
            )
        self.body, self.options = model.body, options
        self._poses: dict[int, list[PoseSample]] = {}
        self._camera: Frustum | None = None
        self._count = 0

    def add(self, frame: Frame, people: PhotoPeople) -> None:
        """Adds one frame's people. Frames without anybody count too. The first frame with people gives the camera."""
        if self._camera is None or (people.people and not self._poses):
            photo = people.photo
            self._camera = Frustum(people.pinhole_K, np.eye(4), photo.width, photo.height, "camera")
        for number, person in zip(people.ids, people.people):
            self._poses.setdefault(number, []).append(PoseSample.of(self._count, frame.time_s, person))
        self._count += 1

    def motions(self) -> list[SkinnedMotion]:
        """The chosen people's motions, smoothed where that is asked for."""
        chosen = self.options.choose({number: len(poses) for number, poses in self._poses.items()})
        found = [motion_of(self.body, number, self._poses[number]) for number in chosen]
        smoothing = self.options.smoothing
        return found if smoothing is None else [smoothing.smooth(motion) for motion in found]

    def write(self, path: Path) -> dict[str, Any]:
        """Writes the animation by the format of the path's ending. Returns `animation` of the JSON beside it."""
        motions = self.motions()
        data = AnimationData(motions, () if self._camera is None else (self._camera,))
        files = formats.of(path).write_animation(path, data)
        smoothing = self.options.smoothing
        return {
            "files": [file.name for file in files],
            "units": "metre",
            "axes": formats.constant(path, "ANIMATION_AXES", ""),
            "smoothing": None if smoothing is None else smoothing.as_json(),
            "people": [self._describe(motion) for motion in motions],
        }

    def _describe(self, motion: SkinnedMotion) -> dict[str, Any]:
        shape, count = mean_shape(self._poses[motion.id])
        return {
            "id": motion.id,
            "name": motion.name,
            "keys": len(motion.frames),
            "seen_s": [round(float(motion.times_s[0]), 6), round(float(motion.times_s[-1]), 6)],
            "not_seen_s": [[round(second, 6) for second in gap] for gap in motion.not_seen_s()],
            "shape": dict(zip(self.body.shape_names, np.round(shape, 6).tolist())),
            "shape_frames": count,
        }


def mean_shape(poses: Sequence[PoseSample]) -> tuple[np.ndarray, int]:
    """(6,) the mean over a person's frames with a confident fit, or over all where there is none; and their number."""
    confident = [pose for pose in poses if pose.confidence >= CONFIDENT] or poses
    return np.mean([pose.shape for pose in confident], 0), len(confident)


def motion_of(body: Anny, number: int, poses: Sequence[PoseSample]) -> SkinnedMotion:
    """The motion of a person: one shape, and each frame's pose as rotations of an upright body at rest."""
    shape, _ = mean_shape(poses)
    upright = body.upright.double().numpy()
    rotations = rotation_from_rotvec(np.stack([pose.rotvec for pose in poses]))
    with torch.inference_mode():
        shapes = torch.from_numpy(shape).float()[None]
        rest = body.rest(shapes)
        local = (
            body.local_rotations(torch.from_numpy(rotations).float(), shapes.expand(len(poses), -1)).double().numpy()
        )
    local = np.concatenate([local[:, :1] @ upright.T, upright @ local[:, 1:] @ upright.T], 1)
    return SkinnedMotion(
        name=person_name(number),
        id=number,
        color=np.array(distinct_color(number), np.uint8),
        joint_names=body.joint_names,
        parents=body.parents,
        vertices=rest.vertices[0, body.surface].double().numpy() @ upright.T,
        joints=rest.joints[0].double().numpy() @ upright.T,
        faces=body.surface_faces().numpy(),
        weights=body.weights[body.surface].double().numpy(),
        frames=np.array([pose.frame for pose in poses]),
        times_s=np.array([pose.time_s for pose in poses]),
        rotations=local,
        translation=np.stack([pose.translation for pose in poses]),
    )
