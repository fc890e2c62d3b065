"""A map to find photos in: the posed photos of a COLMAP model, or of a scene that `dune reconstruct` wrote."""

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
from dune_cli.geometry.bundle_adjustment import MODE
from dune_cli.geometry.poses import subtract_world_offset, world_offset
from dune_cli.io.colmap.read import ColmapModel, model_files, model_folder, open_model
from dune_cli.io.colmap.tables import FOCALS
from dune_cli.io.intrinsics import LARGEST_RADIAL, LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.json_files import Fields
from dune_cli.io.orientation import stored_cam_from_cam
from dune_cli.io.safe_read import forward_slashes, is_file, open_regular, read_json, shown
from dune_cli.io.stored_cameras import GivenCamera, stored_orientations
from dune_cli.provenance import sha256_of
from dune_cli.sfm.cameras import Camera

SCENE_SCHEMA = "dune.scene/1"
IMAGE_FOLDERS = ("", "images", "../images", "../../images")  # below the map, or beside its sparse/0
SAME_PLACE = 1e-9  # of the coordinates: what rounding leaves
FEW_POINTS = 15  # that two photos share, below which they are no neighbours
UNKNOWN_SCALE = "the map does not say whether its lengths are metres; if they are, say --scale metric"


@dataclass(frozen=True)
class MapImage:
    """A photo of the map: `file` on the disk, its camera, `world_from_cam` (4, 4), and `neighbours`: the indices of
    the images with which it shares points, the most first (empty where the map has no points). `modes` (M, 10), M the
    same in the whole map: how its camera goes with what the map does not know of its lenses, as in `Adjusted`; None
    where the map does not say how sure they are."""

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
    """Posed photos. `scale` is "metric" (the world's unit is a metre) or "arbitrary", and then `scale_note` says why.
    `files` hold the model, for its provenance. `world_offset` (3,): where the world's coordinates are large, what was
    taken off the images' poses here."""

    folder: Path
    images: tuple[MapImage, ...]
    scale: str
    scale_note: str | None
    files: tuple[Path, ...] = ()
    world_offset: np.ndarray | None = None

    @property
    def knows_calibration(self) -> bool:
        """Whether it says how sure its cameras are."""
        return all(image.modes is not None for image in self.images)

    @cached_property
    def extent(self) -> float:
        """The largest distance between two cameras, measured along the axes of the world."""
        centres = np.stack([image.world_from_cam[:3, 3] for image in self.images])
        return float(np.linalg.norm(centres.max(0) - centres.min(0)))


def open_map(folder: str | Path, images: str | Path | None = None, scale: str | None = None) -> PhotoMap:
    """The map in `folder`: a COLMAP model (in it, in its sparse/0 or sparse), else a scene's JSON.

    Photos lie in `images`, else in the folder, its images/, or where the scene's JSON saw them. `scale` (metric |
    arbitrary) overrides what the scene's JSON says. UserError for no or a broken model, for one without images, and
    where no two of its photos are on the disk; a note names the photos that are left out.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no folder"
        raise UserError(f"the map {folder} is {kind}; name the folder of a COLMAP model or of a scene.json")
    if images is not None and not Path(images).expanduser().is_dir():
        raise UserError(f"--images {images} is no folder; name the one with the map's photos")
    scenes = _scenes(folder)
    model = model_folder(folder)
    if model is None and not scenes:
        raise UserError(
            f"{folder} holds no map: neither a COLMAP model (cameras, images and points3D as .bin or .txt, in it or "
            "in its sparse/0) nor the scene.json of dune reconstruct; name the folder of one"
        )
    if model is None and len(scenes) > 1:
        names = ", ".join(path.name for path in list(scenes)[:3])
        raise UserError(f"{folder} holds several scenes ({names}); give each its own folder")
    if model is not None:
        entries, files = _from_colmap(model), model_files(model)
        entries = _with_modes(entries, [entry for scene in scenes.items() for entry in _from_scene(*scene)])
    else:
        path, tree = next(iter(scenes.items()))
        entries, files = _from_scene(path, tree), [path]
    if not entries:
        raise UserError(f"the map {folder} has no registered images; name another model, or reconstruct it again")
    kept = _with_photos(_even_modes(entries), folder, images, list(scenes.values()))
    centres = np.stack([image.world_from_cam[:3, 3] for image in kept])
    if np.ptp(centres, axis=0).max() <= SAME_PLACE * max(float(np.abs(centres).max()), 1.0):
        raise UserError(
            f"all {len(kept)} cameras of the map {folder} stand in one place, from where no point has a known "
            "distance; a map needs photos from different places"
        )
    offset = world_offset(centres)
    near = tuple(replace(image, world_from_cam=subtract_world_offset(image.world_from_cam, offset)) for image in kept)
    return PhotoMap(folder, near, *_scale(scale, list(scenes.values())), tuple(files), offset)


@dataclass(frozen=True)
class _Entry:
    """An image as the model has it; `stored`: whether it means the stored pixels, where the size does not tell."""

    name: str
    camera: Camera
    world_from_cam: np.ndarray
    neighbours: tuple[int, ...] = ()
    modes: np.ndarray | None = None
    stored: bool = False

    @property
    def given(self) -> GivenCamera:
        return GivenCamera(self.world_from_cam, (self.camera.width, self.camera.height), self.stored)


def _from_colmap(folder: Path) -> list[_Entry]:
    model = open_model(folder)
    images = sorted(model.images.values(), key=lambda image: image.name)
    shared = _shared_points(model, [image.image_id for image in images])
    entries = []
    for image, row in zip(images, shared):
        camera = image.camera
        if not FOCALS[camera.model_name]:
            raise UserError(
                f"the image {shown(image.name)} of the map {folder} is a panorama ({camera.model_name}); photos of a "
                "camera with a focal length are needed"
            )
        lens = Camera(camera.model_name, camera.params, camera.width, camera.height)
        entries.append(_Entry(image.name, lens, image.world_from_cam, row, stored=True))
    return entries


def _shared_points(model: ColmapModel, ids: Sequence[int]) -> list[tuple[int, ...]]:
    """For each image (by its place in `ids`) the others that share FEW_POINTS points or more, the most first."""
    from scipy.sparse import coo_array

    order = np.argsort(ids)
    place = order[np.searchsorted(np.array(ids)[order], model.seen_by)] if len(model.seen_by) else model.seen_by
    sees = coo_array((np.ones(len(place), np.int64), (place, model.seen_point)), (len(ids), len(model.xyz))).tocsr()
    sees.data[:] = 1  # an image may see a point twice
    counts = (sees @ sees.T).tolil()
    counts.setdiag(0)
    neighbours = []
    for others, shared in zip(counts.rows, counts.data):
        ranked = sorted(zip(others, shared), key=lambda entry: (-entry[1], entry[0]))
        neighbours.append(tuple(int(other) for other, count in ranked if count >= FEW_POINTS))
    return neighbours


def _scenes(folder: Path) -> dict[Path, dict[str, Any]]:
    """The `dune.scene/1` files right in the folder."""
    found = {}
    for path in sorted(path for path in folder.glob("*.json") if is_file(path)):
        with open_regular(path, "a scene's JSON") as file:
            ours = b'"dune.scene/1"' in file.read(4096)
        if ours:
            tree = read_json(path)
            if isinstance(tree, dict) and tree.get("schema") == SCENE_SCHEMA:
                found[path] = tree
    return found


def _from_scene(path: Path, tree: dict[str, Any]) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    try:
        for camera in Fields(tree, str(path)).objects("cameras"):
            if not camera.flag("registered"):
                continue
            name = camera.text("image")
            if name in entries:
                raise UserError(f"{camera.where} names the image {shown(name)} a second time")
            width, height = (camera.integer(side, low=1, high=LARGEST_SIDE_PX) for side in ("width", "height"))
            K = pinhole_matrix(camera.items_of("K"), f"{camera.where}: K", width, height)
            pose = rigid_pose(camera.items_of("world_from_cam"), f"{camera.where}: world_from_cam")
            radial = camera.number("radial", 0.0, -LARGEST_RADIAL, LARGEST_RADIAL)
            lens = Camera.radial(K, radial, width, height) if radial else Camera.pinhole(K, width, height)
            entries[name] = _Entry(name, lens, pose, (), _modes(camera), tree.get("image_size_is") == "stored")
    except UserError as error:
        raise UserError(f"the scene {path} is broken ({error}); reconstruct it again") from error
    return list(entries.values())


def _modes(camera: Fields) -> np.ndarray | None:
    """None where the scene does not say how sure the camera is; none of them (0, 10) where it was given."""
    found = camera.object("camera", None)
    modes = None if found is None else found.array("modes", (None, MODE), None)
    if modes is None and found is not None and camera.get("focal_source") == "given":
        return np.zeros((0, MODE))
    return modes


def _with_modes(entries: Sequence[_Entry], told: Sequence[_Entry]) -> list[_Entry]:
    """The images of a model with what the scene's JSON beside it says of the same cameras in the same places."""
    known = {entry.name: entry for entry in told if entry.modes is not None}

    def modes(entry: _Entry) -> np.ndarray | None:
        other = known.get(entry.name)
        same = other is not None and np.allclose(
            other.world_from_cam[:3, 3], entry.world_from_cam[:3, 3], rtol=1e-6, atol=1e-6
        )
        return other.modes if same else None

    return [replace(entry, modes=modes(entry)) for entry in entries]


def _even_modes(entries: Sequence[_Entry]) -> list[_Entry]:
    """Cameras that were given have no modes, which is as good as modes of nothing beside others that have some; modes
    of different numbers are those of different scenes."""
    counts = {len(entry.modes) for entry in entries if entry.modes is not None} - {0}
    if any(entry.modes is None for entry in entries) or len(counts) > 1:
        return [replace(entry, modes=None) for entry in entries]
    empty = np.zeros((max(counts, default=0), MODE))
    return [replace(entry, modes=entry.modes if len(entry.modes) else empty) for entry in entries]


def _with_photos(
    entries: Sequence[_Entry], folder: Path, images: str | Path | None, scenes: Iterable[dict[str, Any]]
) -> list[MapImage]:
    """Those whose photo is on the disk, their neighbours renumbered; cameras and poses are the upright photos'."""
    places = [Path(images).expanduser()] if images is not None else [folder / place for place in IMAGE_FOLDERS]
    seen_at = [] if images is not None else [path for tree in scenes for path in _inputs(tree)]
    files: dict[int, Path] = {}
    for index, entry in enumerate(entries):
        spots = (place / name for name in (entry.name, forward_slashes(entry.name)) for place in places)
        file = next((spot for spot in spots if is_file(spot)), None) or _seen(entry.name, seen_at)
        if file is not None:
            files[index] = file
    _say_missing([entry.name for index, entry in enumerate(entries) if index not in files], entries, folder, images)
    given = {str(index): entries[index].given for index in files}
    stored = stored_orientations(folder, given, {str(index): file for index, file in files.items()})
    kept = {index: file for index, file in files.items() if str(index) in stored}
    if len(kept) < 2:
        raise UserError(
            f"the map {folder} has {len(kept)} photos that can be used, and two are needed; store them upright"
        )
    place = {old: new for new, old in enumerate(kept)}
    found = []
    for index, file in kept.items():
        entry, orientation = entries[index], stored[str(index)]
        pose = entry.world_from_cam @ stored_cam_from_cam(orientation)
        neighbours = tuple(place[n] for n in entry.neighbours if n in place)
        found.append(
            MapImage(entry.name, file, replace(entry.camera, orientation=orientation), pose, neighbours, entry.modes)
        )
    return found


def _seen(name: str, files: Sequence[Path]) -> Path | None:
    """The file, of those that a scene was made of, whose path ends as `name` and that is still there."""
    parts = Path(name).parts
    return next((path for path in files if path.parts[-len(parts) :] == parts and is_file(path)), None)


def _say_missing(missing: Sequence[str], entries: Sequence[_Entry], folder: Path, images: str | Path | None) -> None:
    names = ", ".join(map(shown, missing[:3])) + (", ..." if len(missing) > 3 else "")
    if len(entries) - len(missing) < 2:
        where = f"--images {images}" if images is not None else f"{folder} or its images folder"
        raise UserError(
            f"{len(missing)} of the map's {len(entries)} photos ({names}) are not in {where}, and a map needs two; "
            "name their folder with --images"
        )
    if missing:
        console.note(f"{len(missing)} of the map's {len(entries)} photos are left out, they are not there: {names}")


def _inputs(tree: dict[str, Any]) -> list[Path]:
    """The photos that a scene was made of."""
    provenance = tree.get("provenance")
    inputs = provenance.get("inputs") if isinstance(provenance, dict) else None
    entries = inputs if isinstance(inputs, list) else []
    return [Path(entry["path"]) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str)]


def _scale(asked: str | None, scenes: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    if asked is not None:
        return asked, None if asked == "metric" else "--scale arbitrary"
    told = [tree.get("scale") for tree in scenes]
    if told and all(scale == "metric" for scale in told):
        return "metric", None
    notes = [" ".join(str(tree.get("scale_note") or "").split())[:300] for tree in scenes]
    return "arbitrary", next(filter(None, notes), UNKNOWN_SCALE)
