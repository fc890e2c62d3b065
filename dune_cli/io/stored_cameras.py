"""Cameras in files that describe the stored pixels of photos, for photos that EXIF turns.

In dune photos are upright. COLMAP and splatting tools ignore EXIF and read the stored pixels; their models have the
sizes and poses of these.
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
    """A camera as a file has it: `world_from_cam` (4, 4), and `size` (width, height) in pixels or None. `stored`:
    whether files of this kind describe the stored pixels; it decides where the size does not."""

    world_from_cam: np.ndarray
    size: tuple[int, int] | None = None
    stored: bool = False


def means_stored(given: GivenCamera, photo: PhotoHeader) -> bool:
    """Whether a camera is that of the photo's stored pixels.

    Its size (landscape or portrait) decides where the photo is turned by 90 degrees and not square, else the kind of
    file.
    """
    if photo.orientation == orientations.UPRIGHT:
        return False
    if orientations.swapped(photo.orientation) and given.size is not None:
        (width, height), high = given.size, photo.height > photo.width
        if width != height and photo.width != photo.height:
            return (height > width) != high
    return given.stored


def stored_orientations(where: object, given: Mapping[str, GivenCamera], files: Mapping[str, Path]) -> dict[str, int]:
    """For each camera the EXIF orientation of the stored pixels that it describes; 1 for the upright photo.

    `files`: each camera's photo; one that cannot be read counts as upright. `where` names the cameras' file in notes,
    which say which photos EXIF turns and how their cameras are interpreted. Cameras of mirrored pixels are left out.
    """
    kept: dict[str, int] = {}
    stored, upright, mirrored = [], [], []
    for name, camera in given.items():
        kept[name] = orientations.UPRIGHT
        photo = read_header(files[name])
        if photo is None or photo.orientation == orientations.UPRIGHT:
            continue
        if not means_stored(camera, photo):
            upright.append(name)
        elif photo.orientation in orientations.MIRRORED:
            mirrored.append(name)
            del kept[name]
        else:
            stored.append(name)
            kept[name] = photo.orientation
    for names, text in (
        (stored, "are taken as those of their stored pixels"),
        (upright, "are taken as those of the upright photos"),
        (mirrored, "are of mirrored pixels, from which no pose of the upright photo follows, and left out"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            console.note(f"{where}: EXIF turns {Path(names[0]).name}{more}; the cameras {text}")
    return kept


def upright_poses(where: object, given: Mapping[str, GivenCamera], files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """`world_from_cam` (4, 4) of the upright photo, for each camera that `stored_orientations` keeps."""
    return {
        name: given[name].world_from_cam @ orientations.stored_cam_from_cam(orientation)
        for name, orientation in stored_orientations(where, given, files).items()
    }
