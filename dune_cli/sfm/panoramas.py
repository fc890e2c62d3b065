"""Panoramas of the whole sphere as perspective views: six pictures to the sides of a cube, which overlap at its edges.

What works on photos with a focal length (features, matches, mapping, stereo) works on these views; a rig without a
baseline holds those of one panorama together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import from_rotation_translation
from dune_cli.geometry.rigs import Mount, Rigs
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.listed_folder import is_whole, write_list
from dune_cli.io.orientation import UPRIGHT
from dune_cli.io.outputs import atomic_directory
from dune_cli.io.photo_files import write_photo
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.provenance import sha256_of
from dune_cli.sfm.masks import Ignored, MaskFiles, MaskSource

FIELD_OF_VIEW_DEG = 100.0  # of a view: neighbours overlap by 10 degrees
SMALLEST_SIDE_PX = 16
LIST, SCHEMA = "views.json", "dune.panorama/1"


def _rotation(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """(3, 3) the axes of a view from the panorama's: turned to the right by `yaw_deg`, then up by `pitch_deg`."""
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    about_y = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    return np.round(about_x @ about_y, 15)


DIRECTIONS = {  # the first has the panorama's own axes
    "front": _rotation(0, 0),
    "right": _rotation(90, 0),
    "back": _rotation(180, 0),
    "left": _rotation(270, 0),
    "up": _rotation(0, 90),
    "down": _rotation(0, -90),
}


def perspective_view(sphere: Camera, direction: str) -> StraightPhoto:
    """The view of a panorama in one of the DIRECTIONS; a pixel at its centre is as large as the panorama's at the
    horizon. UserError for a panorama that is too small."""
    focal = sphere.width / (2 * np.pi)
    side = 2 * round(focal * np.tan(np.radians(FIELD_OF_VIEW_DEG / 2)))
    if side < SMALLEST_SIDE_PX:
        raise UserError(f"a panorama of {sphere.width} x {sphere.height} px is too small; take a larger one")
    K = np.array([[focal, 0, (side - 1) / 2], [0, focal, (side - 1) / 2], [0, 0, 1.0]])
    return StraightPhoto(sphere, K, (side, side), DIRECTIONS[direction])


@dataclass(frozen=True)
class PerspectivePhoto:
    """A photo as it is worked on: the index of the photo that was given as `source`, its file, and of a panorama the
    `direction` of the view and the view itself."""

    source: int
    path: Path
    direction: str | None = None
    view: StraightPhoto | None = None


@dataclass(frozen=True)
class PerspectivePhotos:
    """Photos, some of which are panoramas (`spheres`, by their index), and the `parts` that are worked on in their
    place: each panorama's views, one after the other, and the other photos."""

    sources: tuple[Path, ...]
    spheres: Mapping[int, Camera]
    parts: tuple[PerspectivePhoto, ...]
    rigs: Rigs

    @property
    def paths(self) -> list[Path]:
        """The files of the parts."""
        return [part.path for part in self.parts]

    @property
    def names(self) -> list[str]:
        """The parts' names: those of the photos, and DIRECTION/NAME for views, as COLMAP names the images of rigs."""
        names = relative_names(list(self.sources))
        return [f"{self._prefix(index, part.direction)}{names[part.source]}" for index, part in enumerate(self.parts)]

    def _prefix(self, index: int, direction: str | None) -> str:
        """What the name of a view begins with: other for each size of panoramas, for they are cameras of their own."""
        return "" if direction is None else _prefix(self.rigs.mounts[index].rig, direction)

    def of(self, source: int) -> list[int]:
        """The parts of a photo."""
        return [index for index, part in enumerate(self.parts) if part.source == source]

    def poses(self, known: Mapping[Path, np.ndarray]) -> dict[Path, np.ndarray]:
        """`world_from_cam` of the parts from those of the photos."""
        found = {}
        for part in self.parts:
            pose = known.get(self.sources[part.source])
            if pose is not None:
                found[part.path] = pose if part.view is None else pose @ _inverse_rotation(part.view)
        return found

    def cameras(self, own: Sequence[PhotoCamera]) -> list[PhotoCamera]:
        """The cameras of the parts, from those of the photos."""
        found = []
        for part in self.parts:
            if part.view is None:
                found.append(own[part.source])
            else:
                camera = Camera.pinhole(part.view.K, part.view.width, part.view.height)
                found.append(PhotoCamera(camera, "given", lens_known=True))
        return found

    def infos(self, parts: Sequence[PhotoInfo]) -> list[PhotoInfo]:
        """What is known of the photos, from what is known of the parts."""
        found = []
        for source, path in enumerate(self.sources):
            info, sphere = parts[self.of(source)[0]], self.spheres.get(source)
            if sphere is not None:
                info = PhotoInfo(path, sphere.width, sphere.height, info.sha256, panorama=True)
            found.append(info)
        return found


class ViewMasks:
    """Mask files of photos, as masks of their parts."""

    def __init__(self, files: MaskFiles, photos: PerspectivePhotos) -> None:
        self.names, self.sources = files.names, files.sources
        self._files = files
        self._parts = {part.path: (photos.sources[part.source], part.view) for part in photos.parts}

    @classmethod
    def of(cls, source: MaskSource, photos: PerspectivePhotos) -> MaskSource:
        """The masks of the parts; what sees classes looks at the parts themselves."""
        return cls(source, photos) if isinstance(source, MaskFiles) else source

    def ignored(self, photo: Path) -> Ignored:
        whole, view = self._parts[photo]
        found = self._files.ignored(whole)
        return found if view is None else {name: ~view.mask(~ignored) for name, ignored in found.items()}


def _prefix(rig: int, direction: str) -> str:
    return f"{direction}{rig + 1 if rig else ''}/"


def _inverse_rotation(view: StraightPhoto) -> np.ndarray:
    assert view.rotation is not None
    return from_rotation_translation(view.rotation.T, np.zeros(3))


def mounts_of(frames: Sequence[Sequence[int]], groups: Sequence[int]) -> Rigs:
    """The rigs of panoramas: of each its parts, in the order of DIRECTIONS. `groups`: panoramas with equal numbers have
    equal views, and are frames of one rig."""
    mounts = {}
    for frame, (parts, rig) in enumerate(zip(frames, groups)):
        for sensor, (part, rotation) in enumerate(zip(parts, DIRECTIONS.values())):
            mounts[part] = Mount(rig, sensor, frame, from_rotation_translation(rotation, np.zeros(3)))
    prefixes = {
        (rig, sensor): _prefix(rig, name) for rig in sorted(set(groups)) for sensor, name in enumerate(DIRECTIONS)
    }
    return Rigs(mounts, prefixes)


def cut(paths: Sequence[Path], spheres: Mapping[int, Camera], cache: WorkFolder) -> PerspectivePhotos:
    """The photos with the panoramas among them (`spheres`, by their index) cut into views, which the cache keeps:
    FOLDER/panoramas/KEY/DIRECTION/NAME.

    Raises what `read_photo` does; UserError for a panorama that EXIF turns, and for a cache without a folder.
    """
    if cache.folder is None:
        raise UserError("the views of panoramas are files of a work folder; name one of this machine with --work")
    parts: list[PerspectivePhoto] = []
    frames, groups, sizes = [], [], sorted({(camera.width, camera.height) for camera in spheres.values()})
    progress = iter(console.progress(sorted(spheres), "cutting panoramas", len(spheres), "panorama"))
    for source, path in enumerate(paths):
        if source not in spheres:
            parts.append(PerspectivePhoto(source, path))
            continue
        next(progress)
        sphere = spheres[source]
        frames.append(range(len(parts), len(parts) + len(DIRECTIONS)))
        groups.append(sizes.index((sphere.width, sphere.height)))
        views = {direction: perspective_view(sphere, direction) for direction in DIRECTIONS}
        files = _cut_one(path, views, cache.folder)
        parts += [PerspectivePhoto(source, files[name], name, view) for name, view in views.items()]
    next(progress, None)
    return PerspectivePhotos(tuple(paths), dict(spheres), tuple(parts), mounts_of(frames, groups))


def _cut_one(path: Path, views: Mapping[str, StraightPhoto], work: Path) -> dict[str, Path]:
    """The file of each view, which is written where it is not there."""
    folder = work / "panoramas" / key_of(sha256_of(path), path.name, FIELD_OF_VIEW_DEG)
    name = f"{path.stem}.jpg"
    files = {direction: folder / direction / name for direction in views}
    if not is_whole(folder, LIST, SCHEMA):
        photo = read_photo(path)
        if photo.orientation != UPRIGHT:
            raise UserError(
                f"the panorama {path} is stored turned (EXIF orientation {photo.orientation}), and a sphere cannot be; "
                "save it upright first, for example with 'magick mogrify -auto-orient'"
            )
        with atomic_directory(folder) as temporary:
            for direction, view in views.items():
                file = temporary / direction / name
                file.parent.mkdir()
                write_photo(file, view.image(photo.rgb))
            write_list(temporary, LIST, SCHEMA)
    return files
