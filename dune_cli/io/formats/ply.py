"""PLY, binary little-endian: point clouds, and triangle meshes whose vertices carry the number of their mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry.cameras import pixel_grid
from dune_cli.io.camera_checks import FARTHEST
from dune_cli.io.depth_files import valid_depth
from dune_cli.io.formats import OPENCV_AXES, DepthData, SceneData
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import atomic_path
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, read_bytes, shown

CONTENT = ("points", "surface")
HEADER_LIMIT_BYTES = 1 << 16
GREY = 200  # of meshes without colours

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "<i2",
    "ushort": "<u2",
    "int": "<i4",
    "uint": "<u4",
    "float": "<f4",
    "double": "<f8",
}
TYPE_NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
_COLOURS = [(name, "u1") for name in ("red", "green", "blue")]
_FACE = [("count", "u1"), ("indices", "<i4", 3)]


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The points or the surface, in world coordinates: doubles where these are large."""
    double = scene.world_offset is not None
    if scene.points is None:
        placed = [replace(mesh, vertices=scene.in_world(mesh.vertices)) for mesh in scene.meshes]
        write_ply_mesh(path, placed, double, scene.axes)
        return []
    points = scene.in_world(scene.points)
    write_ply(path, points, scene.colors, scene.confidence, scene.normals, double, scene.axes)
    normals = [] if scene.normals is None else ["nx", "ny", "nz"]
    return ["x", "y", "z", *normals, "red", "green", "blue", "confidence"]


def write_depth(path: Path, depth: DepthData) -> dict[str, Any]:
    """A coloured point cloud in the camera's frame: each point lies on the ray of its pixel's centre."""
    sampled = slice(None, None, depth.stride_px)
    values = depth.depth[sampled, sampled]
    valid = valid_depth(values)
    points = depth.points(depth.stride_px * pixel_grid(*values.shape)[valid], values[valid])
    confidence = None if depth.confidence is None else depth.confidence[sampled, sampled][valid]
    write_ply(path, points, depth.rgb[sampled, sampled][valid], confidence)
    return {"points": {"file": path.name, "count": len(points), "stride_px": depth.stride_px}}


def write_ply(
    path: str | Path,
    points: np.ndarray,
    colors: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    normals: np.ndarray | None = None,
    double: bool = False,
    axes: str = OPENCV_AXES,
) -> None:
    """Writes `points` (M, 3) and what goes with them: `normals` (M, 3), `colors` (M, 3) uint8, `confidence` (M,).

    Properties in this order: x y z, nx ny nz, red green blue, confidence. Colours are uchar, the others float32; x y z
    are float64 where `double`, for coordinates that float32 does not hold. A comment has the `axes`. ValueError for
    shapes that do not fit and for points that are not finite.
    """
    count = len(points)
    columns = [*_columns(points, "xyz", "<f8" if double else "<f4", count)]
    if normals is not None:
        columns += _columns(normals, ("nx", "ny", "nz"), "<f4", count)
    if colors is not None:
        if colors.dtype != np.uint8:
            raise ValueError(f"colors must be uint8, got {colors.dtype}")
        columns += _columns(colors, ("red", "green", "blue"), "u1", count)
    if confidence is not None:
        columns += _columns(np.reshape(confidence, (-1, 1)), ("confidence",), "<f4", count)
    table = np.empty(count, [(name, kind) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    if not all(np.isfinite(table[axis]).all() for axis in "xyz"):
        raise ValueError("points must be finite: leave out the others first")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(table, axes).encode("ascii"))
        file.write(table.data)


def write_ply_mesh(path: str | Path, meshes: Sequence[Mesh], doubles: bool = False, axes: str = OPENCV_AXES) -> None:
    """All `meshes` in one file; PLY has no groups, so a vertex carries the number of its `mesh`.

    A comment has the `axes`. Meshes without colours are light grey. Coordinates are float32 or, for large ones,
    `doubles`.
    """
    columns = [(axis, "<f8" if doubles else "<f4") for axis in "xyz"] + _COLOURS + [("mesh", "<i4")]
    vertices = np.empty(sum(len(mesh.vertices) for mesh in meshes), columns)
    faces = np.empty(sum(len(mesh.faces) for mesh in meshes), _FACE)
    faces["count"] = 3
    first = first_face = 0
    for number, mesh in enumerate(meshes):
        own = vertices[first : first + len(mesh.vertices)]
        colors = np.full((len(own), 3), GREY, np.uint8) if mesh.colors is None else mesh.colors
        for column, axis in enumerate("xyz"):
            own[axis] = mesh.vertices[:, column]
        for column, name in enumerate(("red", "green", "blue")):
            own[name] = colors[:, column]
        own["mesh"] = number
        faces["indices"][first_face : first_face + len(mesh.faces)] = mesh.faces + first
        first, first_face = first + len(mesh.vertices), first_face + len(mesh.faces)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        _axes_comment(axes),
        f"element vertex {len(vertices)}",
        *(f"property {'double' if doubles else 'float'} {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        "property int mesh",
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
        "",
    ]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(vertices.tobytes())
        file.write(faces.tobytes())


def read_ply(path: str | Path) -> dict[str, np.ndarray]:
    """The vertex properties by name, each (M,), of a binary little-endian PLY file of at most 4 GiB.

    UserError for any other file, for a damaged one, and for points that are not finite.
    """
    content = read_bytes(path, "a PLY file", ARRAYS_LIMIT_BYTES)
    end = content.find(b"end_header\n", 0, HEADER_LIMIT_BYTES)
    lines = content[: max(end, 0)].decode("ascii", "replace").split("\n")
    if end < 0 or lines[0].strip() != "ply" or "format binary_little_endian 1.0" not in lines:
        raise UserError(f"{path} is no binary little-endian PLY file, the only kind that is read")
    words = [line.split() for line in lines if line.startswith(("element", "property"))]
    if not words or words[0][:2] != ["element", "vertex"] or any(len(word) != 3 for word in words):
        raise UserError(f"{path} does not begin with vertices of scalar properties; other PLY files are not read")
    own = next((i for i, word in enumerate(words) if i and word[0] == "element"), len(words))
    properties, digits = words[1:own], words[0][2]
    names = [word[2] for word in properties]
    if not names or len(set(names)) != len(names) or any(word[1] not in TYPES for word in properties):
        raise UserError(f"{path} has a property twice, of an unknown type, or none; allowed types: {', '.join(TYPES)}")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 15:
        raise UserError(f"{path} announces {shown(digits)} points; a whole number is needed")
    kind = np.dtype([(word[2], TYPES[word[1]]) for word in properties])
    body, count = len(content) - end - len(b"end_header\n"), int(digits)
    if body < count * kind.itemsize:
        raise UserError(f"{path} is cut off: {count} points are announced, {body // kind.itemsize} are there")
    table = np.frombuffer(content, kind, count, end + len(b"end_header\n"))
    if not all((np.abs(table[axis]) <= FARTHEST).all() for axis in "xyz" if axis in names):  # NaN is no less
        raise UserError(f"{path} holds points that are not finite, or beyond {FARTHEST:g}; write it anew without them")
    return {name: table[name].copy() for name in names}


def _columns(
    values: np.ndarray, names: str | tuple[str, ...], kind: str, count: int
) -> list[tuple[str, str, np.ndarray]]:
    if values.shape != (count, len(names)):
        raise ValueError(f"{'/'.join(names)} must have the shape {(count, len(names))}, got {values.shape}")
    return [(name, kind, values[:, i]) for i, name in enumerate(names)]


def _axes_comment(axes: str) -> str:
    """The line of a header on the axes of the coordinates."""
    return f"comment dune: {f'OpenCV axes ({axes})' if axes == OPENCV_AXES else f'axes {axes}'}"


def _header(table: np.ndarray, axes: str) -> str:
    properties = [f"property {TYPE_NAMES[table.dtype[name]]} {name}" for name in table.dtype.names or ()]
    lines = ["ply", "format binary_little_endian 1.0", _axes_comment(axes)]
    return "\n".join([*lines, f"element vertex {len(table)}", *properties, "end_header", ""])
