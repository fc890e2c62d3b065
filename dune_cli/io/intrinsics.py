"""Cameras of photos: from the user, from EXIF, or a default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import MODELS, SPHERE, Camera
from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.camera_checks import pinhole_matrix
from dune_cli.io.camera_files import (
    CameraEntry,
    CameraTable,
    camera_object,
    json_cameras,
    parse_camera,
    read_camera_file,
)
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.json_files import finite_array
from dune_cli.io.orientation import MIRRORED, UPRIGHT, quarter_turns, swapped
from dune_cli.io.photos import Photo, PhotoInfo, is_sphere_shaped, read_infos, read_small
from dune_cli.io.safe_read import forward_slashes, is_file, is_folder, quoted, read_json, shown
from dune_cli.io.sphere_pixels import LOOKED_AT_PX, closes_around

DEFAULT_FOV_DEG = 55.0
FORMS = (
    "fx,fy,cx,cy in pixels or a COLMAP camera such as OPENCV,WIDTH,HEIGHT,PARAMS (one for all images, or one an image "
    'separated by ";"), a JSON file {"image": 3x3}, or a calibration (COLMAP, transforms.json, OpenCV, Kalibr)'
)
SAME_SHAPE = 0.005  # difference of two aspect ratios that counts as rounding
LEAST_SEEN = 0.6  # of a photo's pixels, that a lens must have rays for
WIDEST_PINHOLE_DEG = 140.0  # rectilinear lenses on sale end at about 130
FARTHEST_CENTRE = 1.0  # of a principal point off the photo, in long sides: crops have it outside


@dataclass(frozen=True)
class PhotoCamera:
    """The camera of an upright photo. `source` given | exif | default. `lens_known`: False where nothing is known of
    its distortion, of which `camera` then has none."""

    camera: Camera
    source: str
    lens_known: bool = False

    @property
    def K(self) -> np.ndarray:
        """(3, 3) of its pinhole part."""
        return self.camera.K

    @property
    def lens(self) -> Camera | None:
        """The camera, where it has distortion."""
        return None if self.camera.is_pinhole else self.camera

    @classmethod
    def of_matrix(cls, K: np.ndarray, source: str, width: int, height: int) -> PhotoCamera:
        """A camera of which only `K` (3, 3) is known, or guessed."""
        return cls(Camera.pinhole(K, width, height), source)


def resolve_cameras(
    photos: Sequence[Photo | PhotoInfo],
    intrinsics: str | None,
    fov_deg: float | None,
    entries: Mapping[Path, CameraEntry] | None = None,
    panoramas: bool = False,
) -> list[PhotoCamera]:
    """The camera of each photo, in its upright pixels.

    Sources, in order of precedence (docs/file-formats.md, `focal_source`): "given" by `intrinsics` (FORMS; several
    separated by ";" in the order of the photos) or by `fov_deg`, the field of view across the long side in degrees, or
    by `entries` (of a file of poses, by the photo's path); "exif"; "default", 55 degrees. Without `intrinsics` and
    `entries` the principal point is the image's centre. Four numbers and a 3 x 3 matrix say nothing about the lens; a
    camera with a model does. A photo whose XMP says that it is a panorama has a sphere, and by the `intrinsics`
    EQUIRECTANGULAR all photos that are twice as wide as high have one; where `panoramas` are taken and nothing is
    given, those whose pixels close around a sphere, too. A file that has cameras for some of the photos leaves the
    others as they are without it; a note names them. UserError for `intrinsics` and `fov_deg` at once, for values that
    are no camera of the photo, and for a panorama unless `panoramas` are taken.
    """
    cameras = _resolve(photos, intrinsics, fov_deg, entries)
    if panoramas and intrinsics is None and fov_deg is None:
        cameras = _with_spheres_by_pixels(photos, cameras)
    for photo, own in zip(photos, cameras):
        if own.camera.is_panorama and not panoramas:
            raise _no_panorama(photo, own)
    if intrinsics is None and fov_deg is None:
        if panoramas:
            _note_untold_spheres(photos, cameras)
        else:
            _note_likely_spheres(photos, cameras)
    return cameras


def _resolve(
    photos: Sequence[Photo | PhotoInfo],
    intrinsics: str | None,
    fov_deg: float | None,
    entries: Mapping[Path, CameraEntry] | None,
) -> list[PhotoCamera]:
    if intrinsics is not None and fov_deg is not None:
        raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
    if intrinsics is not None and intrinsics.strip().upper() == SPHERE:
        return _spheres(photos)
    if intrinsics is not None:
        found = _from_text_or_file(intrinsics, photos)
        cameras = [
            _without_intrinsics(photo, None) if entry is None else _fitted(entry, photo)
            for photo, entry in zip(photos, found)
        ]
        _note_unlisted(intrinsics, photos, found)
        _note_sideways(photos, found, cameras)
        _note_resized(photos, found, cameras)
        return cameras
    if fov_deg is None and entries:
        known = {photo.path: _fitted(entries[photo.path], photo) for photo in photos if photo.path in entries}
        own = [known.get(photo.path) or _without_intrinsics(photo, None) for photo in photos]
        _note_resized(photos, [entries.get(photo.path) for photo in photos], own)
        return own
    return [_without_intrinsics(photo, fov_deg) for photo in photos]


def _spheres(photos: Sequence[Photo | PhotoInfo]) -> list[PhotoCamera]:
    """A sphere for each photo that is twice as wide as high. UserError where none is."""
    if not any(is_sphere_shaped(photo.width, photo.height) for photo in photos):
        photo = photos[0]
        raise UserError(
            f"--intrinsics {SPHERE} is for panoramas, which are twice as wide as high, and {photo.path.name} has "
            f"{photo.width} x {photo.height} px; give the camera of these photos"
        )
    return [
        PhotoCamera(Camera.sphere(photo.width, photo.height), "given", lens_known=True)
        if is_sphere_shaped(photo.width, photo.height)
        else _without_intrinsics(photo, None)
        for photo in photos
    ]


def _no_panorama(photo: Photo | PhotoInfo, own: PhotoCamera) -> UserError:
    why = "its XMP says equirectangular" if photo.panorama else f"its camera is {own.camera.model}"
    return UserError(
        f"{photo.path.name} is a panorama of the whole sphere ({why}), which no camera with a focal length took; 'dune "
        "reconstruct' and 'dune reloc --map' take panoramas; else cut it into pictures first, for example by 'ffmpeg "
        "-i IN -vf v360=e:flat:yaw=0 OUT', or give --fov-deg if it is none"
    )


def _with_spheres_by_pixels(photos: Sequence[Photo | PhotoInfo], cameras: Sequence[PhotoCamera]) -> list[PhotoCamera]:
    """The cameras with spheres for the photos that are told to be panoramas by their pixels alone."""
    found, names = [], []
    for photo, own in zip(photos, cameras):
        size = (photo.width, photo.height)
        if own.source != "given" and is_sphere_shaped(*size) and _closes_around(photo):
            own = PhotoCamera(Camera.sphere(*size), "given", lens_known=True)
            names.append(photo.path.name)
        found.append(own)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.note(
            f"{names[0]}{more}: taken for a panorama of the whole sphere, because left and right edge join as those of "
            "one do; give --fov-deg if it is none"
        )
    return found


def _closes_around(photo: Photo | PhotoInfo) -> bool:
    if isinstance(photo, Photo):
        return closes_around(photo.rgb)
    return photo.orientation == UPRIGHT and is_file(photo.path) and closes_around(read_small(photo.path, LOOKED_AT_PX))


def _note_untold_spheres(photos: Sequence[Photo | PhotoInfo], cameras: Sequence[PhotoCamera]) -> None:
    names = [
        photo.path.name
        for photo, own in zip(photos, cameras)
        if own.source == "default" and is_sphere_shaped(photo.width, photo.height)
    ]
    if names:
        more, say = (f" and {len(names) - 1} more are", "say") if len(names) > 1 else (" is", "says")
        console.note(
            f"{names[0]}{more} twice as wide as high and {say} nothing of the camera: a panorama of the whole sphere "
            f"is taken for one with --intrinsics {SPHERE}"
        )


def _note_likely_spheres(photos: Sequence[Photo | PhotoInfo], cameras: Sequence[PhotoCamera]) -> None:
    """A note about photos that are taken for a pinhole camera's and whose pixels say that they are panoramas."""
    for photo, own in zip(photos, cameras):
        if own.source == "default" and is_sphere_shaped(photo.width, photo.height) and _closes_around(photo):
            console.note_once(
                f"{photo.path.name} looks like a panorama of the whole sphere (its left and right edge join), and is "
                "taken for a photo of a pinhole camera; cut a panorama into pictures first",
                "likely panoramas",
            )


def find_panoramas(
    paths: Sequence[Path],
    intrinsics: str | None,
    fov_deg: float | None,
    entries: Mapping[Path, CameraEntry] | None = None,
) -> dict[int, Camera]:
    """The panoramas among photos, by their index, as `resolve_cameras` tells them. UserError as there."""
    infos = read_infos(paths)
    if infos is None:
        return {}
    asked = intrinsics is not None and intrinsics.strip().upper() == SPHERE
    if not asked and not any(is_sphere_shaped(info.width, info.height) for info in infos):
        return {}
    with console.collected():  # the notes come where the cameras are used
        cameras = resolve_cameras(infos, intrinsics, fov_deg, entries, panoramas=True)
    return {index: own.camera for index, own in enumerate(cameras) if own.camera.is_panorama}


def resolve_intrinsics(
    photos: Sequence[Photo | PhotoInfo], intrinsics: str | None, fov_deg: float | None
) -> list[tuple[np.ndarray, str]]:
    """(K, source) of each photo, for what takes pinhole cameras only: K (3, 3) float64 in the photo's pixels, centres
    at integers. As `resolve_cameras`; UserError for a lens with distortion."""
    return [pinhole_of(camera, photo) for camera, photo in zip(resolve_cameras(photos, intrinsics, fov_deg), photos)]


def pinhole_of(camera: PhotoCamera, photo: Photo | PhotoInfo) -> tuple[np.ndarray, str]:
    """(K, source) of a camera without distortion. UserError for a lens with distortion."""
    if camera.camera.is_panorama:
        raise _no_panorama(photo, camera)
    if not camera.camera.is_pinhole:
        raise UserError(
            f"{photo.path.name} has the lens {camera.camera.model}, and this works on photos without distortion; "
            "undistort it first (for example by 'colmap image_undistorter'), or give fx,fy,cx,cy alone to ignore the "
            "lens"
        )
    return camera.K, camera.source


def _fitted(entry: CameraEntry, photo: Photo | PhotoInfo) -> PhotoCamera:
    """The entry as the camera of the upright photo: turned where it is that of the stored pixels, and resized where its
    images have another size of the same shape. UserError where it cannot be the photo's."""
    name, turns = photo.path.name, 0
    size = (photo.width, photo.height)
    if not MODELS[entry.model].focals:
        if not is_sphere_shaped(*size):
            raise UserError(
                f"the camera of {name} is a panorama ({entry.model}), and the photo has {size[0]} x {size[1]} px; a "
                "sphere is twice as wide as high"
            )
        return PhotoCamera(Camera.sphere(*size), "given", lens_known=True)
    if photo.orientation != UPRIGHT and entry.size is not None and _is_of_stored_size(entry, photo):
        if photo.orientation in MIRRORED:
            raise UserError(
                f"{name} is stored mirrored (EXIF orientation {photo.orientation}), and its camera describes the "
                "stored pixels; save the photo upright first"
            )
        turns = -quarter_turns(photo.orientation)
    camera = entry.camera(*size).turned(turns)
    if (camera.width, camera.height) != size:
        stretch = (size[0] / camera.width) / (size[1] / camera.height)
        if abs(stretch - 1) > SAME_SHAPE + 1.5 / min(*size, camera.width, camera.height):
            raise UserError(
                f"the camera for {name} is of images of {camera.width} x {camera.height} px, and the photo has "
                f"{size[0]} x {size[1]} px, which has another shape; give the camera of this photo"
            )
        camera = camera.resized(*size)
    _check(camera, photo)
    return PhotoCamera(camera, "given", entry.lens_known)


def _is_of_stored_size(entry: CameraEntry, photo: Photo | PhotoInfo) -> bool:
    """Whether the entry is of the photo's stored pixels: landscape or portrait decides, else the kind of its file."""
    assert entry.size is not None
    (width, height), high = entry.size, photo.height > photo.width
    if swapped(photo.orientation) and width != height and photo.width != photo.height:
        return (height > width) != high
    return entry.stored


def _note_unlisted(intrinsics: str, photos: Sequence[Photo | PhotoInfo], entries: Sequence[CameraEntry | None]) -> None:
    left = [photo.path.name for photo, entry in zip(photos, entries) if entry is None]
    if left:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        console.note(
            f"{intrinsics} has no camera that is certainly that of {len(left)} of {len(photos)} photos ({some}); "
            "theirs are taken from EXIF or estimated, as without --intrinsics"
        )


def _note_sideways(
    photos: Sequence[Photo | PhotoInfo], entries: Sequence[CameraEntry | None], cameras: Sequence[PhotoCamera]
) -> None:
    sideways = [
        photo.path.name
        for photo, entry, camera in zip(photos, entries, cameras)
        if entry is not None and entry.size is None and not camera.camera.is_panorama and _is_of_stored(camera.K, photo)
    ]
    if sideways:
        more = f" and {len(sideways) - 1} more" if len(sideways) > 1 else ""
        console.note(
            f"the intrinsics of {sideways[0]}{more} look like those of the stored pixels, which EXIF turns; give "
            "them for the upright photo"
        )


def _note_resized(
    photos: Sequence[Photo | PhotoInfo], entries: Sequence[CameraEntry | None], cameras: Sequence[PhotoCamera]
) -> None:
    resized = [
        (photo.path.name, entry.size, (photo.width, photo.height))
        for photo, entry in zip(photos, entries)
        if entry is not None and entry.size is not None and sorted(entry.size) != sorted((photo.width, photo.height))
    ]
    if resized:
        (name, (width, height), size), more = resized[0], f" and {len(resized) - 1} more" if len(resized) > 1 else ""
        console.note(
            f"the camera of {name}{more} is of images of {width} x {height} px, and was scaled to {size[0]} x "
            f"{size[1]} px"
        )


def one_by_one(intrinsics: str | None, count: int) -> list[str | None]:
    """The `intrinsics` for each of `count` photos that `resolve_intrinsics` gets one at a time.

    UserError for several cameras whose number is not that of the photos, and for what holds no cameras.
    """
    check_intrinsics(intrinsics)
    groups = [group for group in (intrinsics or "").split(";") if group.strip()]
    if len(groups) < 2 or is_file(Path(intrinsics or "").expanduser()):
        return [intrinsics] * count
    if len(groups) != count:
        raise _wrong_count(len(groups), count)
    return list(groups)


def _wrong_count(cameras: int, photos: int) -> UserError:
    return UserError(f"--intrinsics holds {cameras} cameras for {photos} images; give one for all, or one an image")


def _without_intrinsics(photo: Photo | PhotoInfo, fov_deg: float | None) -> PhotoCamera:
    if fov_deg is None and photo.panorama:
        return PhotoCamera(Camera.sphere(photo.width, photo.height), "given", lens_known=True)
    if fov_deg is None and photo.exif_focal_px is not None:
        K = K_from_focal(photo.exif_focal_px, photo.width, photo.height)
        return PhotoCamera.of_matrix(K, "exif", photo.width, photo.height)
    source = "default" if fov_deg is None else "given"
    fov_deg = DEFAULT_FOV_DEG if fov_deg is None else fov_deg
    if not 0 < fov_deg < 180:
        raise UserError(f"a field of view of {fov_deg:g} degrees is impossible; allowed: between 0 and 180")
    focal_px = max(photo.width, photo.height) / 2 / math.tan(math.radians(fov_deg) / 2)
    K = K_from_focal(focal_px, photo.width, photo.height)
    if source == "given":
        _note_fisheye(fov_deg)
    return PhotoCamera.of_matrix(K, source, photo.width, photo.height)


def _note_fisheye(fov_deg: float) -> None:
    """A note about a field of view that no lens without distortion has."""
    if fov_deg > WIDEST_PINHOLE_DEG:
        console.note_once(
            f"a field of view of {fov_deg:.0f} degrees is that of a fisheye lens, and the camera is taken for one "
            "without distortion, as --fov-deg and four numbers say; give the lens by --intrinsics, such as "
            "OPENCV_FISHEYE,WIDTH,HEIGHT,PARAMS",
            "fields of view",
        )


def _from_text_or_file(intrinsics: str, photos: Sequence[Photo | PhotoInfo]) -> Sequence[CameraEntry | None]:
    path = _named_file(intrinsics)
    if path is not None:
        return _from_file(path, photos)
    cameras = _cameras_in_words(intrinsics)
    if len(cameras) not in (1, len(photos)):
        raise _wrong_count(len(cameras), len(photos))
    return cameras * len(photos) if len(cameras) == 1 else cameras


def _named_file(intrinsics: str) -> Path | None:
    """The file or folder that `intrinsics` names; None where it names none."""
    path = Path(intrinsics).expanduser()
    return path if intrinsics.strip() and (is_file(path) or is_folder(path)) else None


def _cameras_in_words(intrinsics: str) -> list[CameraEntry]:
    cameras = [_from_words(group, intrinsics) for group in intrinsics.split(";") if group.strip()]
    if not cameras:
        raise _no_form(intrinsics)
    return cameras


def check_intrinsics(intrinsics: str | None) -> None:
    """UserError for `intrinsics` that hold no cameras, whatever the photos are."""
    if intrinsics is None or intrinsics.strip().upper() == SPHERE:
        return
    path = _named_file(intrinsics)
    if path is not None:
        _read_file(path)
    else:
        _cameras_in_words(intrinsics)


def _from_words(group: str, intrinsics: str) -> CameraEntry:
    """Four numbers, or a COLMAP camera."""
    entry = parse_camera(group)
    if entry is not None:
        return entry
    try:
        values = tuple(float(value) for value in group.split(",")) if "_" not in group else ()
    except ValueError:
        values = ()
    if len(values) != 4:
        raise _no_form(intrinsics)
    return CameraEntry("PINHOLE", values, lens_known=False)


def _no_form(intrinsics: str) -> UserError:
    return UserError(f"--intrinsics {quoted(intrinsics)} is neither four numbers nor a file; allowed: {FORMS}")


def _from_file(path: Path, photos: Sequence[Photo | PhotoInfo]) -> Sequence[CameraEntry | None]:
    """The camera of each photo; None for photos that the file has none for, where it has one for others."""
    document = _read_file(path)
    if isinstance(document, CameraTable):
        return _entries_of(photos, document)
    keys = [_key_of(photo, document) for photo in photos]
    if not any(key is not None for key in keys):
        names = ", ".join(map(shown, list(document)[:4])) + (", ..." if len(document) > 4 else "")
        missing = ", ".join(photo.path.name for photo in photos[:3]) + (", ..." if len(photos) > 3 else "")
        raise UserError(f"the intrinsics file {path} has no camera for {missing}; it has: {names or 'none'}")
    return [None if key is None else _json_entry(document[key], f"{path}: {quoted(key)}") for key in keys]


def _read_file(path: Path) -> CameraTable | dict[str, Any]:
    """The cameras of a file; of a table of matrices by image names, its JSON object. UserError for other files."""
    table = read_camera_file(path)
    if table is not None:
        return table
    try:
        document = read_json(path, "an intrinsics file")
    except UserError as error:
        raise UserError(f"cannot read the intrinsics file {path}: {error}; allowed: {FORMS}") from error
    if not isinstance(document, dict):
        raise UserError(f'the intrinsics file {path} must hold an object {{"image name": 3x3 matrix}}')
    return json_cameras(path, document) or document


def _json_entry(value: Any, where: str) -> CameraEntry:
    """A 3 x 3 matrix, or an object with `model` and `params`."""
    if isinstance(value, dict):
        return camera_object(value, where)
    K = pinhole_matrix(finite_array(value, (3, 3), where), where)
    return CameraEntry("PINHOLE", tuple(map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))), lens_known=False)


def _entries_of(photos: Sequence[Photo | PhotoInfo], table: CameraTable) -> list[CameraEntry | None]:
    """The photos' cameras: by their names, else those of folders that they are in, else the only one of their size. A
    camera is scaled to photos of another size where the table has no other and no photo has its size. None where that
    does not decide; UserError where it decides for no photo."""
    keys = [_key_of(photo, table.named) for photo in photos]
    sure = [_of_folder_or_size(photo, table) if key is None else table.named[key] for photo, key in zip(photos, keys)]
    if any(entry is not None for entry in sure):
        return sure
    distinct = set(table.others.values())
    if len(distinct) == 1:
        return list(distinct) * len(photos)
    names = ", ".join(map(shown, list(table.named or table.others)[:4]))
    raise UserError(
        f"{table.where} has {len(distinct)} cameras ({names}), and none is certainly that of {photos[0].path.name}; "
        'give a JSON file {"image": {"model": …, "params": […]}}'
    )


def _of_folder_or_size(photo: Photo | PhotoInfo, table: CameraTable) -> CameraEntry | None:
    folders = {name for name in photo.path.absolute().parts[:-1] if not name.isdecimal()}  # numbers are camera ids
    sizes = ((photo.width, photo.height), (photo.height, photo.width), None)
    for entries in (
        {entry for name, entry in table.others.items() if name in folders},
        {entry for entry in table.others.values() if entry.size in sizes},
    ):
        if len(entries) == 1:
            return next(iter(entries))
    return None


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


def _check(camera: Camera, photo: Photo | PhotoInfo) -> None:
    """UserError unless the camera can be that of the photo; a note if its centre is off the photo."""
    name, long_side = photo.path.name, max(photo.width, photo.height)
    K = pinhole_matrix(camera.K, f"the intrinsics of {name}", photo.width, photo.height)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if min(fx, fy) < 0.04 * long_side:
        raise UserError(
            f"the intrinsics of {name} have a focal length of {min(fx, fy):g} px for an image of {photo.width} x "
            f"{photo.height} px; give pixels, not a share of the image's size"
        )
    off = max(-0.5 - cx, cx - photo.width + 0.5, -0.5 - cy, cy - photo.height + 0.5)
    where = f"the principal point ({cx:g}, {cy:g}) lies outside {name} ({photo.width} x {photo.height} px)"
    if off > FARTHEST_CENTRE * long_side:
        raise UserError(f"{where}, farther than its long side; give fx, fy, cx, cy in pixels of this photo")
    if off > 0:
        console.note(where)
    if camera.is_pinhole:
        _note_fisheye(2 * math.degrees(math.atan(long_side / 2 / min(fx, fy))))
        return
    x, y = np.meshgrid(np.linspace(0, photo.width - 1, 17), np.linspace(0, photo.height - 1, 17))
    seen = float(np.isfinite(camera.unproject(np.stack([x, y], axis=-1))).all(-1).mean())
    if seen < LEAST_SEEN:
        raise UserError(
            f"the lens {camera.model} of {name} folds back within the photo: {1 - seen:.0%} of its pixels have no ray; "
            "check the order of the parameters, and that they are those of this size"
        )
    if seen < 1:
        console.note(f"the lens {camera.model} has no ray for {1 - seen:.0%} of {name}: these pixels are not used")
