"""Files of camera poses: known poses read from five kinds, and transforms.json written for splatting tools.

Read: JSON ({"image": world_from_cam}, dune's scene.json, cameras.json, nerfstudio's transforms.json), COLMAP models,
TUM and KITTI trajectories. The world's axes and unit of length are the file's; cameras have OpenCV axes (x right, y
down, z forward). Poses are those of upright photos. COLMAP and splatting tools ignore EXIF: of photos that EXIF turns,
a COLMAP model and transforms.json describe the stored pixels and the other files the upright photo, unless the camera's
size in the file says otherwise.
Formats: nerfstudio, "Data conventions" (its cameras are OpenGL's); TUM RGB-D benchmark, "File formats" (timestamp tx ty
tz qx qy qz qw); KITTI odometry, "Ground truth poses" (the first three rows of the matrix, row-major).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import SPHERE, Camera
from dune_cli.geometry.cameras import HALF_PIXEL
from dune_cli.io import orientation as orientations
from dune_cli.io.camera_checks import FARTHEST, rigid_pose
from dune_cli.io.camera_files import CameraEntry, NoIntrinsics, colmap_entry, json_cameras
from dune_cli.io.colmap.read import open_model
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Frustum
from dune_cli.io.orientation import StoredCamera
from dune_cli.io.photo_names import matching_keys
from dune_cli.io.photos import PhotoHeader, read_header
from dune_cli.io.safe_read import LINES_LIMIT_BYTES, quoted, read_json, read_text, shown

FORMS = (
    "a JSON file ({\"image\": 4x4 world_from_cam}, dune's scene.json, cameras.json, or nerfstudio's transforms.json), "
    "a COLMAP model's folder, or a trajectory in TUM (8 numbers a line) or KITTI form (12 numbers a line)"
)
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
TUM_SECONDS = 0.02  # the association tolerance of the TUM benchmark's own tools
QUATERNION_OFF = 1e-2


@dataclass(frozen=True)
class GivenCamera:
    """A camera as a file has it: `world_from_cam` (4, 4), and `size` (width, height) in pixels or None. `stored`:
    whether files of this kind describe the stored pixels; it decides where the size does not. `entry`: the camera with
    its lens, where the file has it."""

    world_from_cam: np.ndarray
    size: tuple[int, int] | None = None
    stored: bool = False
    entry: CameraEntry | None = None


Poses = dict[str, np.ndarray]
Given = dict[str, GivenCamera]


def read_poses(path: str | Path, names: Sequence[str] | None = None) -> Poses:
    """`world_from_cam` (4, 4) float64 by image name.

    Without `names` the keys are the file's own names; timestamps or line numbers of trajectories. With `names` (image
    names or paths) they are those of the names that have a pose. A name matches the entry with the longest common tail
    of the paths, else the only entry with its stem. In a TUM file its stem is a timestamp (within 0.02 s), in a KITTI
    file a line number from 0; if that does not find all, and there are as many lines as names, their order counts.
    Notes say how trajectories were matched and how many poses belong to no image. UserError (with the path) for other
    files, for matrices that are no rigid poses, and if no name has a pose.
    """
    return read_known_cameras(path, names)[0]


def read_known_cameras(path: str | Path, names: Sequence[str] | None = None) -> tuple[Poses, dict[str, CameraEntry]]:
    """The poses as `read_poses`, and by the same names the cameras with their lenses that the file has as well: a
    COLMAP model, transforms.json, dune's scene.json, cameras.json."""
    path = Path(path).expanduser()
    if not os.path.exists(path):  # noqa: PTH110 (names that no file can have, too)
        raise UserError(f"no such file or folder: {path}; allowed poses: {FORMS}")
    if path.is_dir():
        return _pick(path, _from_colmap(path), names)
    if path.suffix.lower() == ".json":
        return _pick(path, _from_json(path), names)
    poses = _from_trajectory(path, names)
    if names is None:
        return poses, {}
    given = {name: GivenCamera(pose) for name, pose in poses.items()}
    return upright_poses(path, given, {name: Path(name) for name in given}), {}


def _from_colmap(folder: Path) -> Given:
    """COLMAP ignores EXIF: its cameras are those of the stored pixels."""
    images = open_model(folder).images.values()
    return {
        i.name: GivenCamera(i.world_from_cam, (i.camera.width, i.camera.height), True, colmap_entry(i.camera))
        for i in images
    }


def _from_json(path: Path) -> Given:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no poses; allowed: {FORMS}")
    if isinstance(document.get("cameras"), list):
        cameras = [c for c in document["cameras"] if not isinstance(c, dict) or c.get("registered", True)]
        stored = document.get("image_size_is") == "stored"
        listed = _listed(path, cameras, ("image", "world_from_cam", "width", "height"), np.eye(4), stored)
        return _with_entries(path, document, listed)
    if isinstance(document.get("frames"), list):
        frames = document["frames"]
        if any(isinstance(frame, dict) and "T_cam_to_world" in frame for frame in frames):
            listed = _listed(path, frames, ("file", "T_cam_to_world", "width", "height"), np.eye(4), False)
            return _with_entries(path, document, listed)
        keys = ("file_path", "transform_matrix", "w", "h")
        shared = {key: document.get(key) for key in keys[2:]}
        frames = [shared | frame if isinstance(frame, dict) else frame for frame in frames]
        listed = _listed(path, frames, keys, OPENCV_FROM_OPENGL, True)  # nerfstudio ignores EXIF
        return _with_entries(path, document, listed)
    return {name: GivenCamera(_rigid(value, f"{path}: {quoted(name)}")) for name, value in document.items()}


def _with_entries(path: Path, document: dict[str, Any], given: Given) -> Given:
    """With the cameras that the document has for the same names; a transforms.json may have none."""
    try:
        table = json_cameras(path, document)
    except NoIntrinsics:
        return given
    if table is None:
        return given
    return {name: replace(camera, entry=table.named.get(name)) for name, camera in given.items()}


def _listed(
    path: Path, entries: list[Any], keys: tuple[str, str, str, str], own_from_opencv: np.ndarray, stored: bool
) -> Given:
    """The cameras of JSON `entries`, whose `keys` are those of name, pose, width and height."""
    cameras: Given = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get(keys[0]), str) or keys[1] not in entry:
            raise UserError(f"{path}, entry {index}, lacks {keys[0]} or {keys[1]}; allowed: {FORMS}")
        name = entry[keys[0]]
        if name in cameras:
            raise UserError(f"{path} names {shown(name)} twice; keep one of its poses")
        pose = _rigid(entry[keys[1]], f"{path}: {quoted(name)}") @ own_from_opencv
        width, height = (entry.get(key) for key in keys[2:])
        size = (int(width), int(height)) if _is_side(width) and _is_side(height) else None
        cameras[name] = GivenCamera(pose, size, stored)
    return cameras


def _is_side(value: Any) -> bool:
    return isinstance(value, (int, float)) and 1 <= value < 1e6


def _from_trajectory(path: Path, names: Sequence[str] | None) -> Poses:
    rows = _numbers(path)
    if rows.shape[1] == 8:
        from scipy.spatial.transform import Rotation

        _check_tum(path, rows)
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = Rotation.from_quat(rows[:, 4:]).as_matrix(), rows[:, 1:4]
        keys, kind = rows[:, 0], "timestamps"
    else:
        matrices = np.concatenate([rows.reshape(-1, 3, 4), np.tile([[[0, 0, 0, 1.0]]], (len(rows), 1, 1))], axis=1)
        poses = np.stack([_rigid(m, f"{path}, line {i}") for i, m in enumerate(matrices)])
        keys, kind = np.arange(len(rows), dtype=np.float64), "line numbers"
    if names is None:
        return {f"{key:.6f}" if kind == "timestamps" else str(int(key)): pose for key, pose in zip(keys, poses)}
    matched = {}
    for name in names:
        stem = _as_number(Path(name).stem)
        if stem is not None and (gaps := np.abs(keys - stem)).min() <= (TUM_SECONDS if kind == "timestamps" else 0):
            matched[name] = poses[int(gaps.argmin())]
    if len(matched) < len(names) and len(names) == len(poses):
        console.note(f"{path}: its {len(poses)} poses are taken in the order of the images")
        return dict(zip(names, poses))
    if not matched:
        raise UserError(
            f"{path} holds {len(poses)} poses for {len(names)} images whose names are no {kind} in it; give as many "
            f"poses as images, name the images by {kind}, or give the poses as JSON"
        )
    console.note(f"{path}: {len(matched)} of {len(names)} images have a pose, found by {kind} in their names")
    return matched


def _check_tum(path: Path, rows: np.ndarray) -> None:
    """UserError unless rows (N, 8) hold unit quaternions, within the digits that are usually written."""
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(~(np.abs(np.linalg.norm(rows[:, 4:], axis=1) - 1) <= QUATERNION_OFF))
    if len(wrong):
        raise UserError(
            f"{path}, pose {wrong[0] + 1}, has no unit quaternion; each line is timestamp tx ty tz qx qy qz qw"
        )
    if np.abs(rows[:, 1:4]).max() > FARTHEST:
        raise UserError(f"{path} holds coordinates beyond {FARTHEST:g}; each line is timestamp tx ty tz qx qy qz qw")


def _numbers(path: Path) -> np.ndarray:
    """A trajectory as (lines, 8 or 12) float64, without empty lines and # comments."""
    try:
        lines = read_text(path, "a pose file", LINES_LIMIT_BYTES).splitlines()
    except UserError as error:
        raise UserError(f"{error}; allowed: {FORMS}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        values = [_as_number(word) for word in words]
        if None in values or len(values) not in (8, 12) or len(values) != len(rows[0] if rows else values):
            raise UserError(f"{path}, line {number}, has not the 8 or 12 numbers of a pose; allowed: {FORMS}")
        rows.append(values)
    if not rows:
        raise UserError(f"{path} is empty; allowed: {FORMS}")
    return np.array(rows, np.float64)


def _as_number(text: str) -> float | None:
    try:
        value = float(text) if text.isascii() and "_" not in text else np.nan  # 0001_0002 is a name, no number
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _rigid(value: Any, where: str) -> np.ndarray:
    try:
        return rigid_pose(value, where)
    except UserError as error:
        raise UserError(f"{error}; allowed: {FORMS}") from error


def _pick(path: Path, poses: Given, names: Sequence[str] | None) -> tuple[Poses, dict[str, CameraEntry]]:
    if not poses:
        raise UserError(f"{path} holds no poses; allowed: {FORMS}")
    if names is None:
        return {name: camera.world_from_cam for name, camera in poses.items()}, _entries(poses)
    keys = matching_keys(names, list(poses))
    matched = {name: poses[key] for name, key in keys.items()}
    if not matched:
        have = ", ".join(map(shown, list(poses)[:3])) + (", ..." if len(poses) > 3 else "")
        raise UserError(f"{path} has a pose for none of the {len(names)} images; it names {have}")
    twice = len(matched) - len(set(keys.values()))
    if twice:
        raise UserError(f"{path}: {twice} images share another image's pose; name them by more of their paths")
    unused = len(poses) - len(matched)
    if unused:
        console.note(f"{path}: {unused} of its {len(poses)} poses are of images that are not among these")
    return upright_poses(path, matched, {name: Path(name) for name in matched}), _entries(matched)


def _entries(given: Given) -> dict[str, CameraEntry]:
    return {name: camera.entry for name, camera in given.items() if camera.entry is not None}


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


def write_transforms(
    path: str | Path,
    views: Sequence[StoredCamera | Frustum],
    image_paths: Sequence[str | Path],
    points_file: str | Path | None = None,
    lenses: Sequence[Camera] | None = None,
) -> None:
    """Writes the registered `views`, whose photos are at `image_paths`, as nerfstudio's transforms.json
    (docs/file-formats.md, "transforms.json").

    `views` have OpenCV axes and K with pixel centres at integers. `points_file`: a PLY of the same world. `lenses`:
    the camera of each photo, whose pinhole part is its K; None for pinhole cameras. Panoramas have nerfstudio's
    EQUIRECTANGULAR camera, with half the width as fl_x and the height as fl_y. ValueError for another number of photos.
    UserError for lenses that the format does not have, and for fisheye lenses and panoramas beside others.
    """
    path = Path(path)
    if len(views) != len(image_paths):
        raise ValueError(f"{len(views)} views for {len(image_paths)} photos")
    if lenses is None:
        lenses = [Camera.pinhole(np.asarray(view.K, np.float64), view.width, view.height) for view in views]
    terms = [nerfstudio_distortion(lens, name) for lens, name in zip(lenses, image_paths)]
    models = {_nerfstudio_model(lens) for lens in lenses}
    if len(models) > 1:
        raise UserError(
            f"{path}: fisheye lenses, panoramas and others do not fit into one transforms.json; write --colmap instead"
        )
    document: dict[str, Any] = {"camera_model": models.pop() if models else "OPENCV"}
    if points_file is not None:
        document["ply_file_path"] = _relative(points_file, path)
    document["applied_transform"] = np.eye(3, 4)
    document["frames"] = [_frame(view, _relative(image, path), k) for view, image, k in zip(views, image_paths, terms)]
    write_json(path, document)


def _nerfstudio_model(lens: Camera) -> str:
    return SPHERE if lens.is_panorama else "OPENCV_FISHEYE" if lens.kind.fisheye else "OPENCV"


def nerfstudio_distortion(lens: Camera, name: object) -> dict[str, float]:
    """The distortion of a frame of transforms.json: k1 to k3, p1, p2, or k1 to k4 of a fisheye lens. UserError (with
    the photo's `name`) for lenses that have other terms."""
    if lens.is_panorama:
        return {}
    terms = dict(zip(lens.kind.parameters, lens.params))
    names = ("k1", "k2", "k3", "k4") if lens.kind.fisheye else ("k1", "k2", "k3", "p1", "p2")
    own = lens.kind.parameters[lens.kind.focals + 2 :]
    if lens.kind.shape != "polynomial" or any(terms[key] for key in own if key not in names):
        raise UserError(
            f"{Path(name).name} has a lens {lens.model}, which transforms.json does not hold; write --colmap instead"
        )
    return {key: float(terms.get(key, 0.0)) for key in names}


def _frame(view: StoredCamera | Frustum, file_path: str, distortion: Mapping[str, float]) -> dict[str, Any]:
    K = np.asarray(view.K, np.float64)
    if not np.isfinite(K).all():  # a panorama: the longitude is pi (x - cx) / fl_x
        width, height = view.width, view.height
        K = np.array([[width / 2, 0, (width - 1) / 2], [0, height, (height - 1) / 2], [0, 0, 1.0]])
    return {
        "file_path": file_path,
        "w": view.width,
        "h": view.height,
        "fl_x": K[0, 0],
        "fl_y": K[1, 1],
        "cx": K[0, 2] + HALF_PIXEL,
        "cy": K[1, 2] + HALF_PIXEL,
        **distortion,
        "transform_matrix": np.asarray(view.world_from_cam, np.float64) @ OPENCV_FROM_OPENGL + 0.0,
    }


def _relative(file: str | Path, path: Path) -> str:
    return Path(os.path.relpath(Path(file).absolute(), path.absolute().parent)).as_posix()
