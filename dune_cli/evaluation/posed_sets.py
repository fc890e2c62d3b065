"""Sets of photos with known cameras: the data of `dune eval multiview`, `depthmaps` and `reloc`.

Each `cameras.json` under a root is a set (docs/file-formats.md): {"name", "scale" ("metric …" or "arbitrary"),
"frames": [{"file" (relative to the json), "K" (3 x 3), "T_cam_to_world" (4 x 4), "width", "height", "dist_k1" (COLMAP's
first radial term; 0 where absent), or "camera" ({"model", "params"})}]}. OpenCV axes, pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.evaluation import metrics
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import subtract_world_offset, world_offset
from dune_cli.io.camera_checks import LARGEST_RADIAL, LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.camera_files import camera_object
from dune_cli.io.json_files import Fields
from dune_cli.io.safe_read import is_file, read_json, shown
from dune_cli.sfm.photo_map import MapImage, PhotoMap

MIN_PHOTOS = 4  # leaving one out leaves three
REQUIRED = ("K", "T_cam_to_world")


class NoGroundTruthError(Exception):
    """A set that cannot be scored; the message is the reason."""


@dataclass(frozen=True)
class PosedSet:
    """Photos with known cameras. extent: the largest distance between two cameras. frames: the photos' indices in the
    file's list."""

    name: str
    map: PhotoMap
    extent: float
    frames: tuple[int, ...]

    @property
    def metric(self) -> bool:
        """Whether lengths are metres."""
        return self.map.scale == "metric"

    @property
    def world_from_cam(self) -> np.ndarray:
        """(N, 4, 4) true poses."""
        return np.stack([image.world_from_cam for image in self.map.images])


def read_posed_sets(root: str | Path, names: Sequence[str] = ()) -> list[PosedSet]:
    """The sets under `root` (only `names`, if any), sorted by file.

    Photos without true intrinsics or a true pose are left out with a note, and so are sets with fewer than four others.
    UserError where no set is left, for an unknown name, and for a damaged set.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder above the cameras.json files")
    files = sorted(root.rglob("cameras.json"))
    if not files:
        raise UserError(f"no cameras.json in {root} or the folders below it")
    sets, reasons = [], []
    for file in files:
        try:
            sets.append(_read_set(file))
        except NoGroundTruthError as reason:
            reasons.append(str(reason))
            console.note(f"left out, for there is no truth to score it by: {reason}")
    if not sets:
        raise UserError(f"no set under {root} has a truth to score it by: {reasons[0]}")
    known = [posed.name for posed in sets]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown set {', '.join(unknown)}; this folder has: {', '.join(known)}")
    return [posed for posed in sets if not names or posed.name in names]


def _read_set(file: Path) -> PosedSet:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise NoGroundTruthError(f'{file} is no set of posed photos: it needs an object with a list "frames"')
    fields = Fields(content, str(file))
    entries = [_read_frame(file, index, frame) for index, frame in enumerate(content["frames"])]
    frames = tuple(index for index, entry in enumerate(entries) if isinstance(entry, MapImage))
    images = tuple(entry for entry in entries if isinstance(entry, MapImage))
    reasons = [entry for entry in entries if isinstance(entry, str)]
    if len(images) < MIN_PHOTOS:
        reason = f" ({reasons[0]})" if reasons else ""
        raise NoGroundTruthError(
            f"{file} has {len(images)} photos with a true pose{reason}; leaving one out takes at least {MIN_PHOTOS}"
        )
    if reasons:
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        console.note(f"left out, for there is no truth to score it by: {reasons[0]}{more}")
    scale = "metric" if fields.text("scale", "").startswith("metric") else "arbitrary"
    poses = np.stack([image.world_from_cam for image in images])
    offset = world_offset(poses[:, :3, 3])  # no error depends on the origin
    images = tuple(
        replace(image, world_from_cam=subtract_world_offset(image.world_from_cam, offset)) for image in images
    )
    extent = metrics.extent(poses)
    if extent == 0:
        raise NoGroundTruthError(f"the cameras of {file} all stand in one place; leaving one out measures nothing")
    name = fields.text("name", None) or file.parent.name
    return PosedSet(name, PhotoMap(file.parent, images, scale, None, (file,)), extent, frames)


def _read_frame(file: Path, index: int, value: Any) -> MapImage | str:
    """The photo, or the reason why it cannot be scored."""
    frame = Fields(value, f"{file}, frame {index}")
    needed = REQUIRED if frame.get("camera") is None else REQUIRED[1:]
    missing = [key for key in needed if frame.get(key) is None]
    if missing:
        return f"{frame.where} lacks {', '.join(missing)}"
    photo = file.parent / frame.text("file")
    if not is_file(photo):
        raise UserError(f"{frame.where}: the photo {shown(str(photo), 200)} is not there")
    width, height = (frame.integer(side, low=1, high=LARGEST_SIDE_PX) for side in ("width", "height"))
    camera = _camera_of(frame, width, height)
    pose = rigid_pose(frame["T_cam_to_world"], f"{frame.where}: T_cam_to_world")
    return MapImage(photo.name, photo, camera, pose)


def _camera_of(frame: Fields, width: int, height: int) -> Camera:
    """The photo's lens, or K and the first radial term. UserError for a panorama."""
    if frame.get("camera") is not None:
        camera = camera_object(frame["camera"], f"{frame.where}: camera", (width, height)).camera(width, height)
        if camera.is_panorama:
            raise UserError(f"{frame.where}: its camera is a panorama, and the benchmarks take cameras with a K")
        pinhole_matrix(camera.K, f"{frame.where}: camera", width, height)
        return camera
    K = pinhole_matrix(frame["K"], f"{frame.where}: K", width, height)
    k1 = frame.number("dist_k1", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
    return Camera.brown(K, [k1], width, height)
