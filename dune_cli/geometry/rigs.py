"""Rigs: photos that several cameras took at one moment, fixed to one another; and the perspective views of a panorama,
which are a rig without a baseline. COLMAP's terms: a frame is what a rig's sensors saw at one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dune_cli.geometry.poses import from_rotation_translation, inverse, nearest_rotation

SAME_CENTRE = 1e-9  # in the rig's unit
OUTLYING = 3.0


@dataclass(frozen=True)
class Mount:
    """A photo's place in a rig: the numbers of the `rig`, of the `sensor` in it, and of the `frame`, which are unique
    among all photos; `sensor_from_rig` (4, 4)."""

    rig: int
    sensor: int
    frame: int
    sensor_from_rig: np.ndarray


@dataclass(frozen=True)
class Rigs:
    """The `mounts` of those photos that are in a rig, by the photo's index. Photos of a frame have different sensors,
    and those of one sensor in one rig have one `sensor_from_rig`; sensor 0 is the reference, whose is the identity.
    `prefixes`: of each (rig, sensor), what the names of its images begin with. `estimated`: the (rig, sensor) whose
    `sensor_from_rig` the photos are to tell; it is NaN until then (`fitted`)."""

    mounts: Mapping[int, Mount] = field(default_factory=dict)
    prefixes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    estimated: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def frames(self) -> dict[int, list[int]]:
        """Frame -> its photos in the order of the sensors."""
        frames: dict[int, list[int]] = {}
        for photo in sorted(self.mounts, key=lambda photo: (self.mounts[photo].sensor, photo)):
            frames.setdefault(self.mounts[photo].frame, []).append(photo)
        return frames

    @property
    def has_baseline(self) -> bool:
        """Whether the rigs tell lengths. Those that are estimated do not."""
        given = [mount for mount in self.mounts.values() if (mount.rig, mount.sensor) not in self.estimated]
        return any(np.linalg.norm(mount.sensor_from_rig[:3, 3]) > 0 for mount in given)

    def sensors(self, rig: int) -> dict[int, np.ndarray]:
        """Sensor -> `sensor_from_rig` of a rig, in the order of the sensors."""
        found = {mount.sensor: mount.sensor_from_rig for mount in self.mounts.values() if mount.rig == rig}
        return dict(sorted(found.items()))

    @property
    def numbers(self) -> list[int]:
        """The rigs."""
        return sorted({mount.rig for mount in self.mounts.values()})

    def of_frame(self, photo: int) -> list[int]:
        """The photos that were taken with a photo, itself among them."""
        mount = self.mounts.get(photo)
        return [photo] if mount is None else self.frames[mount.frame]

    def in_one_frame(self, one: int, two: int) -> bool:
        """Whether two photos are fixed to each other."""
        first, second = self.mounts.get(one), self.mounts.get(two)
        return first is not None and second is not None and first.frame == second.frame

    def links(self) -> list[tuple[int, int]]:
        """Pairs of photos that connect the photos of each frame."""
        return [(photos[0], other) for photos in self.frames.values() for other in photos[1:]]

    def apart(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs without those of one frame that have one centre, and so no parallax."""
        return [pair for pair in pairs if not (self.in_one_frame(*pair) and self._share_centre(*pair))]

    def _share_centre(self, one: int, two: int) -> bool:
        centres = [inverse(self.mounts[photo].sensor_from_rig)[:3, 3] for photo in (one, two)]
        return bool(np.linalg.norm(centres[1] - centres[0]) < SAME_CENTRE)

    def moments(self, count: int) -> list[list[int]]:
        """The `count` photos by frame, those in no rig alone, in the order of each one's first photo."""
        return [photos for index in range(count) if (photos := self.of_frame(index))[0] == index]

    def scale_of(self, world_from_cam: Mapping[int, np.ndarray]) -> float | None:
        """How many of the rigs' units a unit of the poses is: the median over pairs of photos of one frame. None where
        no rig has a baseline."""
        factors = []
        for photos in self.frames.values():
            posed = [photo for photo in photos if photo in world_from_cam]
            for other in posed[1:]:
                own = [inverse(self.mounts[photo].sensor_from_rig)[:3, 3] for photo in (posed[0], other)]
                length = float(np.linalg.norm(own[1] - own[0]))
                found = float(np.linalg.norm(world_from_cam[other][:3, 3] - world_from_cam[posed[0]][:3, 3]))
                if length > SAME_CENTRE and found > 0:
                    factors.append(length / found)
        return float(np.median(factors)) if factors else None

    def rig_poses(self, world_from_cam: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Frame -> `world_from_rig` (4, 4), from the pose of its first photo that has one."""
        poses: dict[int, np.ndarray] = {}
        for frame, photos in self.frames.items():
            posed = [photo for photo in photos if photo in world_from_cam]
            if posed:
                poses[frame] = world_from_cam[posed[0]] @ self.mounts[posed[0]].sensor_from_rig
        return poses

    def completed(self, world_from_cam: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The poses, with those of all photos in the frames of these."""
        frames = self.rig_poses(world_from_cam)
        more = {
            photo: frames[mount.frame] @ inverse(mount.sensor_from_rig)
            for photo, mount in self.mounts.items()
            if mount.frame in frames
        }
        return {**more, **world_from_cam}

    def renumbered(self, index_of: Mapping[int, int]) -> Rigs:
        """The rigs of some of the photos, at other indices."""
        mounts = {index_of[photo]: mount for photo, mount in self.mounts.items() if photo in index_of}
        return replace(self, mounts=mounts)

    def scaled(self, factor: float) -> Rigs:
        """With lengths times `factor`."""
        mounts = {}
        for photo, mount in self.mounts.items():
            pose = mount.sensor_from_rig.copy()
            pose[:3, 3] *= factor
            mounts[photo] = replace(mount, sensor_from_rig=pose)
        return replace(self, mounts=mounts)

    def given(self) -> Rigs:
        """Without the photos of sensors that are estimated."""
        return self.without(self.estimated)

    def without(self, sensors: Collection[tuple[int, int]]) -> Rigs:
        """Without the photos of some (rig, sensor), which stand alone."""
        mounts = {photo: mount for photo, mount in self.mounts.items() if (mount.rig, mount.sensor) not in sensors}
        return replace(self, mounts=mounts, estimated=self.estimated - frozenset(sensors))

    def fitted(self, world_from_cam: Mapping[int, np.ndarray]) -> Rigs:
        """With each estimated `sensor_from_rig` as poses of photos tell it (`mean_pose`): of those moments at which the
        sensor and the reference have one. Sensors without such a moment are left out."""
        relative: dict[tuple[int, int], list[np.ndarray]] = {key: [] for key in self.estimated}
        for photos in self.frames.values():
            reference, *others = photos
            for photo in others if self.mounts[reference].sensor == 0 else ():
                mount = self.mounts[photo]
                if (mount.rig, mount.sensor) in relative and {photo, reference} <= world_from_cam.keys():
                    pose = inverse(world_from_cam[photo]) @ world_from_cam[reference]
                    relative[mount.rig, mount.sensor].append(pose)
        means = {key: mean_pose(np.stack(found)) for key, found in relative.items() if found}
        kept = self.without(self.estimated - means.keys())
        mounts = {
            photo: replace(mount, sensor_from_rig=means.get((mount.rig, mount.sensor), mount.sensor_from_rig))
            for photo, mount in kept.mounts.items()
        }
        return replace(kept, mounts=mounts)


def mean_pose(poses: np.ndarray) -> np.ndarray:
    """(4, 4) the mean of poses (N, 4, 4), without those that are far from most: from the rotation that is nearest to
    the others, and from the median translation, more than OUTLYING times the median distance."""
    rotations, translations = poses[:, :3, :3], poses[:, :3, 3]
    apart = np.linalg.norm(rotations[:, None] - rotations[None], axis=(2, 3))  # (N, N)
    turned = apart[apart.sum(1).argmin()]
    moved = np.linalg.norm(translations - np.median(translations, axis=0), axis=1)
    near = (turned <= OUTLYING * np.median(turned)) & (moved <= OUTLYING * np.median(moved))
    near = near if near.any() else np.ones(len(poses), bool)
    return from_rotation_translation(nearest_rotation(rotations[near].mean(0)), translations[near].mean(0))


NO_RIGS = Rigs()
