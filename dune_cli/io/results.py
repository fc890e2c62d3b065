"""What dune's verbs write, read back to be looked at: points, triangles, cameras with their photos.

Scenes, people and depth, by their own file or by the JSON beside it. Meshes and points of other programs are read too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import K_from_fov, pixel_grid
from dune_cli.io.camera_checks import LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.camera_files import camera_object
from dune_cli.io.depth_files import check_png, colored, read_depth, valid_depth
from dune_cli.io.formats import DepthData, SceneData
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.glb_input import GlbInput
from dune_cli.io.inputs import natural_key
from dune_cli.io.json_files import Fields
from dune_cli.io.meshes import Frustum, damaged, find_mesh
from dune_cli.io.photos import is_sphere_shaped, read_photo
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, is_file, open_zip, read_bytes, read_json, read_npz

SUFFIXES = (".ply", ".glb", ".obj", ".npz", ".png", ".json")
SCENE, HUMAN, DEPTH, CLASSES = "dune.scene/1", "dune.human/1", "dune.depth/1", "dune.classmap/1"
MOST_JSONS = 50  # of a folder, that are searched for the classes of a photo
DEFAULT_FOV_DEG = 55.0  # across the long side, of a depth map without a camera
MOST_DEPTH_POINTS = 4_000_000
GREY = 200  # of points without colours
NPZ_FORM = "an NPZ of dune depth or dune reconstruct"


@dataclass(frozen=True)
class StoredResult:
    """A result to look at: `data` has points or meshes, and cameras. `photos`: the file of each camera's photo, None
    where it is not on this machine. `metric`: whether lengths are metres."""

    path: Path
    data: SceneData
    photos: tuple[Path | None, ...] = ()
    metric: bool = False

    @property
    def positions(self) -> np.ndarray:
        """(N, 3) float64: all points, and all vertices of triangles."""
        clouds = [mesh.vertices for mesh in self.data.meshes]
        return np.concatenate([np.zeros((0, 3)) if self.data.points is None else self.data.points, *clouds])


@dataclass(frozen=True)
class _Described:
    """What the JSON beside a result says: its schema, cameras, photos, and whether lengths are metres."""

    fields: Fields
    schema: str
    cameras: tuple[Frustum, ...]
    photos: tuple[Path | None, ...]
    metric: bool
    lens: Camera | None = None


def read_result(path: str | Path) -> StoredResult:
    """The result in a PLY, GLB, OBJ, NPZ (of dune depth or dune reconstruct), depth PNG, or in the file that a JSON of
    dune names.

    Cameras are those of the JSON beside the file, else a GLB's own. Poses are in the file's coordinates. UserError for
    a file that cannot be read, for another kind, and for one that holds neither points nor triangles.
    """
    path = Path(path).expanduser()
    suffix = _suffix(path)
    if suffix == ".json":
        return read_result(_file_of(path))
    described = _described(path)
    if suffix == ".npz":
        data, described = _from_npz(path, described)
    elif suffix == ".png":
        data = _depth_points(path, read_depth(path), None, described)
    else:
        data = _from_geometry(path)
    if not (len(data.meshes) or (data.points is not None and len(data.points))):
        raise UserError(f"{path} holds neither points nor triangles; there is nothing to show")
    if described is None:
        return StoredResult(path, data, (None,) * len(data.cameras))
    return StoredResult(path, replace(data, cameras=described.cameras), described.photos, described.metric)


def _suffix(path: Path) -> str:
    """The ending. UserError for one of what cannot be shown."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path} has the ending {suffix or '(none)'}; what can be shown ends in {' '.join(SUFFIXES)}: scenes, "
            "people and depth"
        )
    return suffix


def joined(results: Sequence[StoredResult]) -> SceneData:
    """All points, triangles and cameras in one scene. Points have confidence, normals and classes if all of them have
    some; points without colours beside coloured ones are grey."""
    clouds = [result.data for result in results if result.data.points is not None and len(result.data.points)]

    def all_of(name: str) -> np.ndarray | None:
        values = [getattr(data, name) for data in clouds]
        return None if not values or any(value is None for value in values) else np.concatenate(values)

    colors = [
        np.full((len(data.points), 3), GREY, np.uint8) if data.colors is None else data.colors  # type: ignore[arg-type]
        for data in clouds
    ]
    return SceneData(
        all_of("points"),
        np.concatenate(colors) if any(data.colors is not None for data in clouds) else None,
        all_of("confidence"),
        all_of("normals"),
        tuple(mesh for result in results for mesh in result.data.meshes),
        tuple(camera for result in results for camera in result.data.cameras),
        class_colors=all_of("class_colors"),
    )


def result_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The results that files and folders name. A folder stands for those directly in it, else for those in its
    subfolders; a JSON beside its file is not taken twice. UserError for a missing input, a file of another kind, and a
    folder without any."""
    found: list[Path] = []
    for entry in inputs:
        if not str(entry):
            raise UserError("an input is an empty string; name a result of dune, such as scene.ply")
        path = Path(entry).expanduser()
        if path.is_dir():
            inside = sorted((file for file in path.iterdir() if not file.name.startswith(".")), key=natural_key)
            files = list(_results_among(inside))
            for folder in (file for file in inside if file.is_dir() and not files):
                found += _results_among(sorted(folder.iterdir(), key=natural_key))
            found += files
            if not found:
                raise UserError(
                    f"the folder {path} holds no result that can be shown: scenes (PLY, GLB, OBJ, NPZ), people, or "
                    "depth (NPZ, PNG with its JSON)"
                )
        elif not is_file(path):
            what = f"{path} is no regular file" if path.exists() else f"no such file or folder: {path}"
            raise UserError(f"{what}; name a result of dune, such as scene.ply")
        else:
            if _suffix(path) == ".png":
                check_png(path)
            found.append(path)
    return found


def _results_among(files: Sequence[Path]) -> Iterator[Path]:
    for file in filter(is_file, files):
        suffix = file.suffix.lower()
        if suffix in (".ply", ".glb", ".obj") or (suffix == ".npz" and _is_shown_npz(file)):
            yield file
        elif suffix == ".png":
            described = _described(file, loud=False)
            if described is not None and described.schema == DEPTH:
                yield file


def _is_shown_npz(path: Path) -> bool:
    try:
        with open_zip(path, NPZ_FORM) as archive:
            return bool({"depth.npy", "view0_K.npy"} & set(archive.namelist()))
    except UserError:
        return False


def _file_of(path: Path) -> Path:
    """The file that a JSON of dune is about."""
    document = read_json(path)
    fields = Fields(document, str(path))
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == DEPTH:
        name = fields.text("file")
    elif schema == SCENE:
        places = [fields.object(key, None) for key in ("points", "mesh")]
        name = next((one.text("file") for one in places if one is not None and one.get("file")), "")
    elif schema == HUMAN:
        name = next((one.text("mesh").partition("#")[0] for one in fields.objects("people") if one.get("mesh")), "")
    else:
        raise UserError(f"{path} is no JSON of dune reconstruct, human or depth; name one of these, or the file itself")
    if not name or Path(name).suffix.lower() not in SUFFIXES[:-1]:
        raise UserError(f"{path} names no file that can be shown; name the file itself")
    return path.parent / Path(name).name


def _described(path: Path, loud: bool = True) -> _Described | None:
    """The JSON of dune beside a file, if there is one that is about this file; a note tells of a damaged one."""
    beside = path.with_suffix(".json")
    if not is_file(beside):
        return None
    try:
        document = read_json(beside)
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema not in (SCENE, HUMAN, DEPTH) or path.name not in _named_by(document):
            return None
        return _read_described(Fields(document, str(beside)), schema, beside)
    except UserError as error:
        if loud:
            console.note(f"without the cameras of {beside.name}: {error}")
        return None


def _named_by(document: dict[str, Any]) -> set[str]:
    """The files that a JSON is about."""
    objects = [document, *(document.get(key) or {} for key in ("points", "mesh"))]
    names = {str(one.get("file")) for one in objects if isinstance(one, dict)}
    people = document.get("people")
    listed = people if isinstance(people, list) else []
    return names | {str(one.get("mesh")).partition("#")[0] for one in listed if isinstance(one, dict)}


def _read_described(fields: Fields, schema: str, path: Path) -> _Described:
    cameras: list[Frustum] = []
    photos: list[Path | None] = []
    lens = None
    if schema == SCENE:
        inputs = [one.text("path") for one in fields.object("provenance").objects("inputs", [])]
        offset = fields.array("world_offset", (3,), np.zeros(3))
        for one in fields.objects("cameras"):
            if not one.flag("registered", False):
                continue
            size = _size(one)
            pose = rigid_pose(one.get("world_from_cam"), f"{one.where}: world_from_cam")
            pose[:3, 3] -= offset
            name = one.text("image")
            if one.get("K") is None and is_sphere_shaped(*size):  # a panorama
                cameras.append(Frustum.of_sphere(pose, size[0], name))
                photos.append(None)
                continue
            cameras.append(Frustum(pinhole_matrix(one.get("K"), f"{one.where}: K", *size), pose, *size, name))
            photos.append(_photo([*(given for given in inputs if given.endswith(name)), name], path))
    else:
        image = fields.object("image")
        size = _size(image)
        name = image.text("file" if schema == HUMAN else "path")
        if schema == HUMAN:
            camera = fields.object("camera")
            fx, fy, cx, cy = (camera.number(key) for key in ("fx", "fy", "cx", "cy"))
            K = pinhole_matrix([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], f"{path}: camera", *size)
            if camera.get("undistorted_K") is not None:  # of a lens: the pinhole camera that shows all of the photo
                K = pinhole_matrix(camera["undistorted_K"], f"{path}: camera.undistorted_K", *size)
        else:
            K = pinhole_matrix(fields.get("K"), f"{path}: K", *size)
            if fields.get("camera") is not None:
                lens = camera_object(fields["camera"], f"{path}: camera", size).camera(*size)
        cameras, photos = [Frustum(K, np.eye(4), *size, Path(name).name)], [_photo([name], path)]
    metric = schema == HUMAN or fields.text("scale", "") == "metric"
    return _Described(fields, schema, tuple(cameras), tuple(photos), metric, lens)


def _size(fields: Fields) -> tuple[int, int]:
    """An image's width and height in pixels."""
    width, height = (fields.integer(name, low=1, high=LARGEST_SIDE_PX) for name in ("width", "height"))
    return width, height


def _photo(names: Sequence[str], json_file: Path) -> Path | None:
    """The first of these photos that is here: by its path, from the JSON's folder, or beside the JSON."""
    for name in names:
        for place in (Path(name), json_file.parent / name, json_file.parent / Path(name).name):
            if is_file(place):
                return place
    return None


def _from_geometry(path: Path) -> SceneData:
    """Of a PLY, GLB or OBJ file."""
    mesh = find_mesh(path)
    meshes = () if mesh is None else (mesh,)
    suffix = path.suffix.lower()
    if suffix == ".glb":
        content = read_bytes(path, "a GLB file", ARRAYS_LIMIT_BYTES)
        try:
            glb = GlbInput(content)
            (points, colors), cameras = glb.points(), glb.cameras()
        except Exception as error:  # damaged bytes
            raise damaged(path, error) from error
        if glb.is_skinned:  # at rest about the origin, where a camera would be within the body
            console.note(f"{path} is an animation, of which the bodies are shown at rest; a viewer of glTF plays it")
            cameras = []
        return SceneData(points, colors, meshes=meshes, cameras=cameras)
    if suffix == ".ply" and mesh is None:
        table = read_ply(path)
        if not {"x", "y", "z"} <= set(table):
            raise UserError(f"{path} has vertices without x, y and z; there is nothing to show")

        def columns(*names: str) -> np.ndarray | None:
            return np.stack([table[name] for name in names], -1) if set(names) <= set(table) else None

        points, colors, normals = columns("x", "y", "z"), columns("red", "green", "blue"), columns("nx", "ny", "nz")
        if colors is not None and colors.dtype != np.uint8:
            colors = np.rint(255 * np.nan_to_num(colors).clip(0, 1)).astype(np.uint8)
        assert points is not None
        confidence = table.get("confidence")
        return SceneData(points.astype(np.float64), colors, confidence, normals)
    return SceneData(meshes=meshes)


def _from_npz(path: Path, described: _Described | None) -> tuple[SceneData, _Described | None]:
    with open_zip(path, NPZ_FORM) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    if "depth" in names:
        arrays = read_npz(path, NPZ_FORM, sorted(names & {"K", "confidence", "camera_model", "camera_params"}))
        return _depth_points(path, read_depth(path), arrays, described), described
    if "view0_K" not in names:
        raise UserError(f"{path} holds neither depth nor a scene; {NPZ_FORM} is needed")
    kinds = ("points", "colors", "confidence", "normals", "valid")
    views = [name.removesuffix("_points") for name in sorted(names) if name.endswith("_points")]
    first = next((one for one in ("fused", *views) if f"{one}_points" in names), None)
    if first is None:
        return SceneData(), described
    chosen = [one for one in views if one.startswith("view")] if first.startswith("view") else [first]
    arrays = read_npz(path, NPZ_FORM, [f"{one}_{kind}" for one in chosen for kind in kinds if f"{one}_{kind}" in names])
    parts: dict[str, list[np.ndarray]] = {}
    for one in chosen:
        points = np.asarray(arrays[f"{one}_points"], np.float64)
        keep = np.isfinite(points).all(-1)
        if f"{one}_valid" in arrays and arrays[f"{one}_valid"].shape == keep.shape:
            keep &= arrays[f"{one}_valid"].astype(bool)
        for kind in kinds[:-1]:
            values = arrays.get(f"{one}_{kind}")
            if values is not None and values.shape[: keep.ndim] == keep.shape:
                parts.setdefault(kind, []).append(values[keep])
    joined = {kind: np.concatenate(values) for kind, values in parts.items() if len(values) == len(chosen)}
    return SceneData(np.asarray(joined.pop("points"), np.float64), **joined), described


def _depth_points(
    path: Path, depth: np.ndarray, arrays: dict[str, np.ndarray] | None, described: _Described | None
) -> SceneData:
    """A depth map as points in its camera's frame, coloured by the photo or, without it, by nearness."""
    height, width = depth.shape
    arrays = arrays or {}
    if described is not None and described.schema != DEPTH:
        described = None
    rgb = None
    if described is not None and described.photos[0] is not None:
        photo = read_photo(described.photos[0])
        rgb = photo.rgb if photo.rgb.shape[:2] == depth.shape else None
    if rgb is None:
        console.note(f"{path.name}: its photo is not here; near points are bright")
        rgb = colored(depth, "turbo")
    lens = None if described is None else described.lens
    if described is not None:
        K = described.cameras[0].K
    elif "K" in arrays:
        K = pinhole_matrix(arrays["K"], f"{path}: K", width, height)
        if {"camera_model", "camera_params"} <= set(arrays):
            stored = {"model": str(arrays["camera_model"]), "params": arrays["camera_params"].tolist()}
            lens = camera_object(stored, f"{path}: camera", (width, height)).camera(width, height)
    else:
        console.note(f"{path.name}: no camera beside it; a field of view of {DEFAULT_FOV_DEG:g} degrees is assumed")
        K = K_from_fov(DEFAULT_FOV_DEG, width, height)
    stride = max(1, int(np.ceil(np.sqrt(depth.size / MOST_DEPTH_POINTS))))
    sampled = slice(stride // 2, None, stride)
    values = depth[sampled, sampled]
    valid = valid_depth(values)
    pixels = stride * pixel_grid(*values.shape)[valid] + stride // 2
    data = DepthData(depth, rgb, K, lens=lens)
    points = data.points(pixels, values[valid])
    confidence, classes = arrays.get("confidence"), _class_picture(path, described)

    def sampled_of(picture: np.ndarray | None) -> np.ndarray | None:
        fits = picture is not None and picture.shape[:2] == depth.shape
        return picture[sampled, sampled][valid] if picture is not None and fits else None

    scene = SceneData(
        points,
        sampled_of(rgb),
        sampled_of(confidence),
        cameras=(Frustum(K, np.eye(4), width, height, path.stem),),
        class_colors=sampled_of(classes),
    )
    return scene.kept(np.isfinite(points).all(-1))  # a lens has no rays at some pixels


def _class_picture(path: Path, described: _Described | None) -> np.ndarray | None:
    """The class map (H, W, 3) of the same photo, in its colours, where `dune segment` or `dune predict` wrote one into
    the same folder."""
    if described is None:
        return None
    photo = described.fields.object("image").text("path")
    for beside in sorted(path.parent.glob("*.json"), key=natural_key)[:MOST_JSONS]:
        try:
            document = read_json(beside)
            if not isinstance(document, dict) or document.get("schema") != CLASSES:
                continue
            fields = Fields(document, str(beside))
            if fields.object("image").text("path") == photo:
                return read_photo(beside.parent / Path(fields.text("file")).name).rgb
        except UserError as error:
            console.note(f"without the classes of {beside.name}: {error}")
    return None
