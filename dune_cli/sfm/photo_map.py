"""A map for localization: the posed photos of a COLMAP model, or of a scene that `dune reconstruct` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry import poses
from dune_cli.geometry.bundle_adjustment import MODE_SIZE
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.poses import subtract_world_offset, world_offset
from dune_cli.io.camera_checks import LARGEST_RADIAL, LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.camera_files import camera_object
from dune_cli.io.colmap.read import ColmapModel, model_files, model_folder, open_model
from dune_cli.io.json_files import Fields
from dune_cli.io.orientation import quarter_turns, stored_cam_from_cam
from dune_cli.io.pose_files import GivenCamera, stored_orientations
from dune_cli.io.safe_read import forward_slashes, is_file, open_regular, read_json, shown
from dune_cli.provenance import sha256_of

SCENE_SCHEMA = "dune.scene/1"
IMAGE_FOLDERS = ("", "images", "../images", "../../images")  # below the map, or beside its sparse/0
SAME_CENTRE = 1e-9  # of the coordinates: rounding error
MIN_SHARED_POINTS = 15  # of neighbours
UNKNOWN_SCALE = "the map does not say whether its lengths are metres; if they are, say --scale metric"


@dataclass(frozen=True)
class MapImage:
    """A photo of the map: its `file`, camera, and `world_from_cam` (4, 4).

    `neighbours`: the indices of the images that it shares points with, those with most points first; empty where the
    map has no points. `modes` (M, 10), M the same in the whole map: how its camera changes with the uncertainty of the
    map's calibration, as in `AdjustedBundle`; None where that is unknown.
    """

    name: str
    file: Path
    camera: Camera
    world_from_cam: np.ndarray
    neighbours: tuple[int, ...] = ()
    modes: np.ndarray | None = None

    @property
    def cam_from_world(self) -> np.ndarray:
        return poses.inverse(self.world_from_cam)

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.file)


@dataclass(frozen=True)
class PhotoMap:
    """Posed photos. `scale` is "metric" (the world's unit is a metre) or "arbitrary"; `scale_note` then says why.

    `files` hold the model, for its provenance. `world_offset` (3,): what was subtracted from the images' poses here,
    where the world's coordinates are large.
    """

    folder: Path
    images: tuple[MapImage, ...]
    scale: str
    scale_note: str | None
    files: tuple[Path, ...] = ()
    world_offset: np.ndarray | None = None

    @property
    def knows_calibration(self) -> bool:
        """Whether the uncertainty of all its cameras is known."""
        return all(image.modes is not None for image in self.images)

    def camera_of_size(self, width: int, height: int) -> Camera | None:
        """The camera of its photos of `width` x `height` px, if these have one."""
        cameras = {
            image.camera for image in self.images if (image.camera.width, image.camera.height) == (width, height)
        }
        return next(iter(cameras)) if len(cameras) == 1 else None

    @cached_property
    def extent(self) -> float:
        """The largest distance between two cameras, measured along the axes of the world."""
        centres = np.stack([image.world_from_cam[:3, 3] for image in self.images])
        return float(np.linalg.norm(centres.max(0) - centres.min(0)))


def open_map(
    folder: str | Path, images: str | Path | None = None, scale: str | None = None, panoramas: bool = False
) -> PhotoMap:
    """The map in `folder`: a COLMAP model (in it, in its sparse/0 or sparse), else a scene's JSON.

    `folder` may also be a scene itself: its JSON, or the file beside that. Photos are in `images`, else in the folder,
    its images/, or where the scene's JSON has its inputs. `scale` (metric | arbitrary) overrides that of the scene's
    JSON. UserError for a missing or broken model, for one without images, and
    where fewer than two of its photos are found; a note names the photos that are left out. UserError for a map with
    panoramas, unless `panoramas` are taken.
    """
    given = Path(folder).expanduser()
    of_scene = not given.is_dir()
    scenes = _scene_files([given.with_suffix(".json")] if of_scene else sorted(given.glob("*.json")))
    if of_scene and not (given.exists() and scenes):
        kind = "a file without a scene's JSON" if given.exists() else "no folder"
        raise UserError(f"the map {given} is {kind}; name the folder of a COLMAP model, or a scene of dune reconstruct")
    folder = given.parent if of_scene else given
    if images is not None and not Path(images).expanduser().is_dir():
        raise UserError(f"--images {images} is no folder; name the one with the map's photos")
    model = None if of_scene else model_folder(folder)
    if model is None and not scenes:
        raise UserError(
            f"{folder} holds no map: neither a COLMAP model (cameras, images and points3D as .bin or .txt, in it or "
            "in its sparse/0) nor the scene.json of dune reconstruct; name the folder of one"
        )
    if model is None and len(scenes) > 1:
        names = ", ".join(path.name for path in list(scenes)[:3])
        raise UserError(f"{folder} holds several scenes ({names}); name one of them")
    if model is not None:
        entries, files = _from_colmap(model), model_files(model)
        entries = _with_modes(entries, [entry for scene in scenes.items() for entry in _from_scene(*scene)])
    else:
        path, scene = next(iter(scenes.items()))
        entries, files = _from_scene(path, scene), [path]
    if not entries:
        raise UserError(f"the map {folder} has no registered images; name another model, or reconstruct it again")
    sphere = next((entry for entry in entries if entry.camera.is_panorama), None)
    if sphere is not None and not panoramas:
        raise UserError(
            f"the image {shown(sphere.name)} of the map {folder} is a panorama ({sphere.camera.model}); photos of a "
            "camera with a focal length are needed"
        )
    found = _with_photos(_with_equal_modes(entries), folder, images, list(scenes.values()))
    centres = np.stack([image.world_from_cam[:3, 3] for image in found])
    if np.ptp(centres, axis=0).max() <= SAME_CENTRE * max(float(np.abs(centres).max()), 1.0):
        raise UserError(
            f"all {len(found)} cameras of the map {folder} stand in one place, from where no point can be "
            "triangulated; a map needs photos from different places"
        )
    offset = world_offset(centres)
    shifted = (replace(image, world_from_cam=subtract_world_offset(image.world_from_cam, offset)) for image in found)
    return PhotoMap(folder, tuple(shifted), *_scale(scale, list(scenes.values())), tuple(files), offset)


@dataclass(frozen=True)
class _ModelImage:
    """An image of the model, before its photo is found. `stored`: whether its camera is that of the stored pixels,
    where their size does not decide."""

    name: str
    camera: Camera
    world_from_cam: np.ndarray
    neighbours: tuple[int, ...] = ()
    modes: np.ndarray | None = None
    stored: bool = False

    @property
    def given(self) -> GivenCamera:
        return GivenCamera(self.world_from_cam, (self.camera.width, self.camera.height), self.stored)


def _from_colmap(folder: Path) -> list[_ModelImage]:
    model = open_model(folder)
    images = sorted(model.images.values(), key=lambda image: image.name)
    neighbours = _neighbours_by_points(model, [image.image_id for image in images])
    entries = []
    for image, near in zip(images, neighbours):
        colmap = image.camera
        camera = Camera.from_colmap(colmap.model_name, colmap.params, colmap.width, colmap.height)
        entries.append(_ModelImage(image.name, camera, image.world_from_cam, near, stored=True))
    return entries


def _neighbours_by_points(model: ColmapModel, ids: Sequence[int]) -> list[tuple[int, ...]]:
    """For each image (by its index in `ids`) the others that share MIN_SHARED_POINTS or more, most points first."""
    from scipy.sparse import coo_array

    order = np.argsort(ids)
    row = order[np.searchsorted(np.array(ids)[order], model.seen_by)] if len(model.seen_by) else model.seen_by
    observed = coo_array((np.ones(len(row), np.int64), (row, model.seen_point)), (len(ids), len(model.xyz))).tocsr()
    observed.data[:] = 1  # an image may see a point twice
    counts = (observed @ observed.T).tolil()
    counts.setdiag(0)
    neighbours = []
    for others, shared in zip(counts.rows, counts.data):
        ranked = sorted(zip(others, shared), key=lambda entry: (-entry[1], entry[0]))
        neighbours.append(tuple(int(other) for other, count in ranked if count >= MIN_SHARED_POINTS))
    return neighbours


def _scene_files(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The `dune.scene/1` JSON files among the paths."""
    scenes = {}
    for path in filter(is_file, paths):
        with open_regular(path, "a scene's JSON") as file:
            is_scene = b'"dune.scene/1"' in file.read(4096)
        if is_scene:
            scene = read_json(path)
            if isinstance(scene, dict) and scene.get("schema") == SCENE_SCHEMA:
                scenes[path] = scene
    return scenes


def _from_scene(path: Path, scene: dict[str, Any]) -> list[_ModelImage]:
    entries: dict[str, _ModelImage] = {}
    try:
        for fields in Fields(scene, str(path)).objects("cameras"):
            if not fields.flag("registered"):
                continue
            name = fields.text("image")
            if name in entries:
                raise UserError(f"{fields.where} names the image {shown(name)} a second time")
            width, height = (fields.integer(side, low=1, high=LARGEST_SIDE_PX) for side in ("width", "height"))
            lens = fields.object("camera", None)
            pose = rigid_pose(fields.items_of("world_from_cam"), f"{fields.where}: world_from_cam")
            if lens is not None and lens.get("model") is not None:
                camera = camera_object(lens.value, lens.where, (width, height)).camera(width, height)
            else:
                K = pinhole_matrix(fields.items_of("K"), f"{fields.where}: K", width, height)
                k1 = fields.number("radial", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
                camera = Camera.brown(K, [k1], width, height)
            stored = scene.get("image_size_is") == "stored"
            entries[name] = _ModelImage(name, camera, pose, (), _modes(fields), stored)
    except UserError as error:
        raise UserError(f"the scene {path} is broken ({error}); reconstruct it again") from error
    return list(entries.values())


def _modes(fields: Fields) -> np.ndarray | None:
    """The calibration modes (M, 10) of a scene's camera, (0, 10) where its K was given; None where they are unknown."""
    camera = fields.object("camera", None)
    modes = None if camera is None else camera.array("modes", (None, MODE_SIZE), None)
    if modes is None and camera is not None and fields.get("focal_source") == "given":
        return np.zeros((0, MODE_SIZE))
    return modes


def _with_modes(entries: Sequence[_ModelImage], of_scenes: Sequence[_ModelImage]) -> list[_ModelImage]:
    """The images of a COLMAP model, with the modes that the scene's JSON beside it has for the same camera centres."""
    known = {entry.name: entry for entry in of_scenes if entry.modes is not None}

    def modes(entry: _ModelImage) -> np.ndarray | None:
        other = known.get(entry.name)
        same = other is not None and np.allclose(
            other.world_from_cam[:3, 3], entry.world_from_cam[:3, 3], rtol=1e-6, atol=1e-6
        )
        return other.modes if same else None

    return [replace(entry, modes=modes(entry)) for entry in entries]


def _with_equal_modes(entries: Sequence[_ModelImage]) -> list[_ModelImage]:
    """Images with equal numbers of modes, or all with None. Given cameras, which have no modes, get modes of zero
    beside others that have some. Different numbers of modes are those of different scenes."""
    counts = {len(entry.modes) for entry in entries if entry.modes is not None} - {0}
    if any(entry.modes is None for entry in entries) or len(counts) > 1:
        return [replace(entry, modes=None) for entry in entries]
    zero = np.zeros((max(counts, default=0), MODE_SIZE))
    return [replace(entry, modes=entry.modes if len(entry.modes) else zero) for entry in entries]


def _with_photos(
    entries: Sequence[_ModelImage], folder: Path, images: str | Path | None, scenes: Iterable[dict[str, Any]]
) -> list[MapImage]:
    """The images whose photo is found, their neighbours renumbered; cameras and poses are the upright photos'."""
    folders = [Path(images).expanduser()] if images is not None else [folder / name for name in IMAGE_FOLDERS]
    inputs = [] if images is not None else [path for scene in scenes for path in _scene_inputs(scene)]
    files: dict[int, Path] = {}
    for index, entry in enumerate(entries):
        paths = (base / name for name in (entry.name, forward_slashes(entry.name)) for base in folders)
        file = next((path for path in paths if is_file(path)), None) or _input_named(entry.name, inputs)
        if file is not None:
            files[index] = file
    _report_missing([entry.name for index, entry in enumerate(entries) if index not in files], entries, folder, images)
    given = {str(index): entries[index].given for index in files}
    orientations = stored_orientations(folder, given, {str(index): file for index, file in files.items()})
    kept = {index: file for index, file in files.items() if str(index) in orientations}
    if len(kept) < 2:
        raise UserError(
            f"the map {folder} has {len(kept)} photos that can be used, and two are needed; store them upright"
        )
    new_index = {old: new for new, old in enumerate(kept)}
    found = []
    for index, file in kept.items():
        entry, orientation = entries[index], orientations[str(index)]
        pose = entry.world_from_cam @ stored_cam_from_cam(orientation)
        camera = entry.camera.turned(-quarter_turns(orientation))
        neighbours = tuple(new_index[n] for n in entry.neighbours if n in new_index)
        found.append(MapImage(entry.name, file, camera, pose, neighbours, entry.modes))
    return found


def _input_named(name: str, inputs: Sequence[Path]) -> Path | None:
    """The existing file among the scene's inputs whose path ends with `name`."""
    parts = Path(name).parts
    return next((path for path in inputs if path.parts[-len(parts) :] == parts and is_file(path)), None)


def _report_missing(
    missing: Sequence[str], entries: Sequence[_ModelImage], folder: Path, images: str | Path | None
) -> None:
    names = ", ".join(map(shown, missing[:3])) + (", ..." if len(missing) > 3 else "")
    if len(entries) - len(missing) < 2:
        place = f"--images {images}" if images is not None else f"{folder} or its images folder"
        raise UserError(
            f"{len(missing)} of the map's {len(entries)} photos ({names}) are not in {place}, and a map needs two; "
            "name their folder with --images"
        )
    if missing:
        console.note(f"{len(missing)} of the map's {len(entries)} photos are left out, they are not there: {names}")


def _scene_inputs(scene: dict[str, Any]) -> list[Path]:
    """The photos that a scene was made of, from its provenance."""
    provenance = scene.get("provenance")
    inputs = provenance.get("inputs") if isinstance(provenance, dict) else None
    entries = inputs if isinstance(inputs, list) else []
    return [Path(entry["path"]) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str)]


def _scale(requested: str | None, scenes: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """The scale of the map, and the note on an arbitrary one."""
    if requested is not None:
        return requested, None if requested == "metric" else "--scale arbitrary"
    if scenes and all(scene.get("scale") == "metric" for scene in scenes):
        return "metric", None
    notes = [" ".join(str(scene.get("scale_note") or "").split())[:300] for scene in scenes]
    return "arbitrary", next(filter(None, notes), UNKNOWN_SCALE)
