"""Rigs: photos that several cameras took at one moment, fixed to one another; and the perspective views of a panorama,
which are a rig without a baseline. COLMAP's terms: a frame is what a rig's sensors saw at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dune_cli.geometry.poses import inverse

SAME_CENTRE = 1e-9  # in the rig's unit


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
    `prefixes`: of each (rig, sensor), what the names of its images begin with."""

    mounts: Mapping[int, Mount] = field(default_factory=dict)
    prefixes: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @cached_property
    def frames(self) -> dict[int, list[int]]:
        """Frame -> its photos in the order of the sensors."""
        frames: dict[int, list[int]] = {}
        for photo in sorted(self.mounts, key=lambda photo: (self.mounts[photo].sensor, photo)):
            frames.setdefault(self.mounts[photo].frame, []).append(photo)
        return frames

    @property
    def has_baseline(self) -> bool:
        """Whether the rigs tell lengths."""
        return any(np.linalg.norm(mount.sensor_from_rig[:3, 3]) > 0 for mount in self.mounts.values())

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
        return Rigs(mounts, self.prefixes)


NO_RIGS = Rigs()
