"""Cameras of photos that EXIF turns, out of files that mean the photos as they are stored.

Here photos are upright. Who reads files without a look at EXIF (COLMAP, splatting tools) sees their stored pixels, and
a model made so has the stored pictures' sizes and poses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.io import orientation as orientations
from dune_cli.io.photos import PhotoHeader, read_header


@dataclass(frozen=True)
class GivenCamera:
    """A camera's pose `world_from_cam` (4, 4) as a file has it; `size` (width, height) in pixels, where the file says
    it; `stored`: whether the file means the stored pixels, where the size does not tell."""

    world_from_cam: np.ndarray
    size: tuple[int, int] | None = None
    stored: bool = False


def means_stored(given: GivenCamera, photo: PhotoHeader) -> bool:
    """Whether a camera is that of the photo's stored pixels.

    Its size tells (wide or high), where the photo is turned by 90 degrees and not square; else the file's kind does.
    """
    if photo.orientation == orientations.UPRIGHT:
        return False
    if orientations.swapped(photo.orientation) and given.size is not None:
        (width, height), high = given.size, photo.height > photo.width
        if width != height and photo.width != photo.height:
            return (height > width) != high
    return given.stored


def stored_orientations(where: object, given: Mapping[str, GivenCamera], files: Mapping[str, Path]) -> dict[str, int]:
    """For each camera the EXIF orientation of the stored pixels that it is of; 1 where it is the upright photo's.

    `files`: each camera's photo; one that cannot be read counts as upright. Notes say which photos EXIF turns and how
    their cameras were understood; `where` is the file that these are from. Cameras of mirrored pixels are left out.
    """
    found: dict[str, int] = {}
    stored, upright, mirrored = [], [], []
    for name, camera in given.items():
        found[name] = orientations.UPRIGHT
        photo = read_header(files[name])
        if photo is None or photo.orientation == orientations.UPRIGHT:
            continue
        if not means_stored(camera, photo):
            upright.append(name)
        elif photo.orientation in orientations.MIRRORED:
            mirrored.append(name)
            del found[name]
        else:
            stored.append(name)
            found[name] = photo.orientation
    for names, text in (
        (stored, "are taken as those of their stored pixels"),
        (upright, "are taken as those of the upright photos"),
        (mirrored, "are of mirrored pixels, from which no pose of the upright photo follows, and left out"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            console.note(f"{where}: EXIF turns {Path(names[0]).name}{more}; the cameras {text}")
    return found


def upright_poses(where: object, given: Mapping[str, GivenCamera], files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """`world_from_cam` (4, 4) of the upright photo of each camera that `stored_orientations` keeps."""
    return {
        name: given[name].world_from_cam @ orientations.stored_cam_from_cam(orientation)
        for name, orientation in stored_orientations(where, given, files).items()
    }
