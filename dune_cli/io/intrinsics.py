"""Intrinsics of photos: from the user, from EXIF, or a default; and checks of matrices in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import DuneError, UserError
from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.json_files import finite_array
from dune_cli.io.orientation import swapped
from dune_cli.io.photos import Photo, PhotoInfo
from dune_cli.io.safe_read import forward_slashes, is_file, quoted, read_json, shown

DEFAULT_FOV_DEG = 55.0
FORMS = 'fx,fy,cx,cy in pixels (one for all images, or one an image separated by ";"), or a JSON file {"image": 3x3}'
LARGEST_SIDE_PX = 1_000_000
FOCAL_PER_SIDE = (1e-3, 1e5)  # plausible focal lengths, in shares of the longer side
FARTHEST = 1e12  # coordinates: beyond it float64 has no digits left for details
LARGEST_RADIAL = 1e6


def pinhole_matrix(
    value: Any, where: str, width: int | None = None, height: int | None = None, error: type[DuneError] = UserError
) -> np.ndarray:
    """`value` as (3, 3) float64 [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels; `where` names it in messages.

    Raises `error` for another shape, numbers that are not finite, skew, another last row, and focal lengths that are
    not positive; with the image's size also for focal lengths and principal points that are implausible for it.
    """
    K = finite_array(value, (3, 3), where, error)
    fx, fy, cx, cy = (float(K[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not np.array_equal(K[2], (0, 0, 1)):
        raise error(f"{where} has the last row {K[2].tolist()}; it must be 0, 0, 1")
    if fx <= 0 or fy <= 0:
        raise error(f"{where} has focal lengths {fx:g} and {fy:g}; they must be positive pixels")
    if abs(K[0, 1]) > 1e-6 * fx or K[1, 0] != 0:
        raise error(f"{where} has skew ({K[0, 1]:g}); give a pinhole camera without skew")
    side = LARGEST_SIDE_PX if width is None or height is None else max(width, height)
    low = 0.0 if width is None or height is None else FOCAL_PER_SIDE[0] * side
    high = FOCAL_PER_SIDE[1] * side
    if not (low <= fx <= high and low <= fy <= high and abs(cx) <= high and abs(cy) <= high):
        of = "" if width is None else f" of an image of {width} x {height} px"
        raise error(f"{where} ({fx:g}, {fy:g}, {cx:g}, {cy:g}) is no camera{of}; give fx, fy, cx, cy in its pixels")
    return K


def rigid_pose(value: Any, where: str, error: type[DuneError] = UserError) -> np.ndarray:
    """The rigid pose (4, 4) float64 nearest to a (4, 4) or (3, 4) matrix; `where` names it in messages.

    Raises `error` for another shape, numbers that are not finite, a rotation off by more than 1e-2, another last row
    than 0 0 0 1, and a translation beyond 1e12.
    """
    from scipy.spatial.transform import Rotation

    rows = len(value) if isinstance(value, (list, tuple, np.ndarray)) else 4
    matrix = finite_array(value, (3 if rows == 3 else 4, 4), where, error)
    rotation, translation = matrix[:3, :3], matrix[:3, 3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max() if np.abs(rotation).max() < 2 else np.inf
    if off > 1e-2 or np.linalg.det(rotation) < 0 or (rows == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6)):
        raise error(f"{where} is no rigid pose (a rotation and a translation, last row 0 0 0 1)")
    if np.abs(translation).max() > FARTHEST:
        raise error(f"{where} lies {np.abs(translation).max():.3g} away; coordinates of at most {FARTHEST:g} are read")
    pose = np.eye(4)
    pose[:3, :3] = rotation if off < 1e-9 else Rotation.from_matrix(rotation).as_matrix()
    pose[:3, 3] = translation
    return pose


def resolve_intrinsics(
    photos: Sequence[Photo | PhotoInfo], intrinsics: str | None, fov_deg: float | None
) -> list[tuple[np.ndarray, str]]:
    """(K, source) of each photo: K (3, 3) float64 in the photo's pixels, centres at integers.

    Sources, in order of precedence (docs/file-formats.md, `focal_source`): "given" by `intrinsics` (`fx,fy,cx,cy`,
    several separated by ";" in the order of the photos, or a JSON file) or by `fov_deg`, the field of view across the
    long side in degrees; "exif"; "default", 55 degrees. Without `intrinsics` the principal point is the image's centre.
    UserError for both options at once, and for values that are no pinhole camera in pixels.
    """
    if intrinsics is not None and fov_deg is not None:
        raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
    if intrinsics is not None:
        matrices = _from_text_or_file(intrinsics, photos)
        for photo, matrix in zip(photos, matrices):
            _check(matrix, photo)
        sideways = [photo.path.name for photo, matrix in zip(photos, matrices) if _is_of_stored(matrix, photo)]
        if sideways:
            more = f" and {len(sideways) - 1} more" if len(sideways) > 1 else ""
            console.note(
                f"the intrinsics of {sideways[0]}{more} look like those of the stored pixels, which EXIF turns; give "
                "them for the upright photo"
            )
        return [(matrix, "given") for matrix in matrices]
    return [_without_intrinsics(photo, fov_deg) for photo in photos]


def one_by_one(intrinsics: str | None, count: int) -> list[str | None]:
    """The `intrinsics` for each of `count` photos that `resolve_intrinsics` gets one at a time.

    UserError for several cameras whose number is not that of the photos.
    """
    groups = [group for group in (intrinsics or "").split(";") if group.strip()]
    if len(groups) < 2 or is_file(Path(intrinsics or "").expanduser()):
        return [intrinsics] * count
    if len(groups) != count:
        raise _wrong_count(len(groups), count)
    return list(groups)


def _wrong_count(cameras: int, photos: int) -> UserError:
    return UserError(f"--intrinsics holds {cameras} cameras for {photos} images; give one for all, or one an image")


def _without_intrinsics(photo: Photo | PhotoInfo, fov_deg: float | None) -> tuple[np.ndarray, str]:
    if fov_deg is None and photo.exif_focal_px is not None:
        return K_from_focal(photo.exif_focal_px, photo.width, photo.height), "exif"
    source = "default" if fov_deg is None else "given"
    fov_deg = DEFAULT_FOV_DEG if fov_deg is None else fov_deg
    if not 0 < fov_deg < 180:
        raise UserError(f"a field of view of {fov_deg:g} degrees is impossible; allowed: between 0 and 180")
    focal_px = max(photo.width, photo.height) / 2 / math.tan(math.radians(fov_deg) / 2)
    return K_from_focal(focal_px, photo.width, photo.height), source


def _pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def _from_text_or_file(intrinsics: str, photos: Sequence[Photo | PhotoInfo]) -> list[np.ndarray]:
    path = Path(intrinsics).expanduser()
    if is_file(path):
        return _from_file(path, photos)
    groups = [group for group in intrinsics.split(";") if group.strip()]
    try:
        cameras = [[float(value) for value in group.split(",")] for group in groups if "_" not in group]
    except ValueError:
        cameras = []
    if not cameras or any(len(camera) != 4 for camera in cameras):
        raise UserError(f"--intrinsics {quoted(intrinsics)} is neither four numbers nor a file; allowed: {FORMS}")
    if len(cameras) not in (1, len(photos)):
        raise _wrong_count(len(cameras), len(photos))
    return [_pinhole(*camera) for camera in (cameras * len(photos) if len(cameras) == 1 else cameras)]


def _from_file(path: Path, photos: Sequence[Photo | PhotoInfo]) -> list[np.ndarray]:
    try:
        table = read_json(path, "an intrinsics file")
    except UserError as error:
        raise UserError(f"cannot read the intrinsics file {path}: {error}; allowed: {FORMS}") from error
    if not isinstance(table, dict):
        raise UserError(f'the intrinsics file {path} must hold an object {{"image name": 3x3 matrix}}')
    keys = [_key_of(photo, table) for photo in photos]
    missing = [photo.path.name for photo, key in zip(photos, keys) if key is None]
    if missing:
        names = ", ".join(map(shown, list(table)[:4])) + (", ..." if len(table) > 4 else "")
        raise UserError(f"the intrinsics file {path} has no camera for {', '.join(missing)}; it has: {names or 'none'}")
    return [finite_array(table[key], (3, 3), f"{path}: {quoted(key)}") for key in keys if key is not None]


def _key_of(photo: Photo | PhotoInfo, table: dict[str, Any]) -> str | None:
    """The key that is the longest tail of the photo's path (`left/img.jpg` before `img.jpg`), else its name's stem;
    backslashes count as slashes where no key is found otherwise."""
    for spelled in ({key: key for key in table}, {forward_slashes(key): key for key in table}):
        key = _matching_key(photo, list(spelled))
        if key is not None:
            return spelled[key]
    return None


def _matching_key(photo: Photo | PhotoInfo, keys: Sequence[str]) -> str | None:
    parts = photo.path.absolute().parts
    tails = [key for key in keys if key and parts[-len(Path(key).parts) :] == Path(key).parts]
    if tails:
        return max(tails, key=lambda key: len(Path(key).parts))
    stem = photo.path.stem
    stems = [key for key in keys if Path(key).name == stem or (_is_image(key) and Path(key).stem == stem)]
    return stems[0] if len(stems) == 1 else None


def _is_of_stored(matrix: np.ndarray, photo: Photo | PhotoInfo) -> bool:
    """Whether the principal point is nearer to the centre of the stored image than to that of the upright one."""
    if not swapped(photo.orientation) or photo.width == photo.height:
        return False
    upright = np.array([photo.width - 1, photo.height - 1]) / 2
    off = [float(np.linalg.norm(matrix[:2, 2] - middle)) for middle in (upright, upright[::-1])]
    return off[1] < off[0]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _check(matrix: np.ndarray, photo: Photo | PhotoInfo) -> None:
    """UserError unless `matrix` is a pinhole camera in pixels without skew; a note if its centre is off the photo."""
    name, long_side = photo.path.name, max(photo.width, photo.height)
    K = pinhole_matrix(matrix, f"the intrinsics of {name}", photo.width, photo.height)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if min(fx, fy) < 0.04 * long_side:
        raise UserError(
            f"the intrinsics of {name} have a focal length of {min(fx, fy):g} px for an image of {photo.width} x "
            f"{photo.height} px; give pixels, not a share of the image's size"
        )
    if not (-0.5 <= cx <= photo.width - 0.5 and -0.5 <= cy <= photo.height - 0.5):
        console.note(f"the principal point ({cx:g}, {cy:g}) lies outside {name} ({photo.width} x {photo.height} px)")
