"""Triangle meshes and drawn cameras, as the output formats write them, and meshes read from files by trimesh."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.safe_read import ARRAYS_LIMIT_BYTES, parse_json, read_bytes

SUFFIXES = (".glb", ".obj", ".ply")


@dataclass(frozen=True)
class Mesh:
    """`vertices` (V, 3) in OpenCV axes, `faces` (F, 3) integers, `colors` (V, 3) uint8 sRGB or None, a `name`.

    A textured mesh has a `texture` (h, w, 3) uint8 sRGB, and of each vertex the place `uv` (V, 2) in it, in [0, 1] from
    its upper left corner, as glTF has it.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    name: str = "mesh"
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.vertices)
        check_points(self.vertices, self.name)
        if self.faces.shape != (len(self.faces), 3) or self.faces.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: faces must be (F, 3) integers, got {self.faces.shape} {self.faces.dtype}")
        if len(self.faces) and not 0 <= self.faces.min() <= self.faces.max() < count:
            raise ValueError(f"{self.name}: faces must name vertices 0 to {count - 1}")
        check_colors(self.colors, count, self.name)
        if (self.uv is None) != (self.texture is None):
            raise ValueError(f"{self.name}: uv and texture go together")
        if self.uv is not None and (self.uv.shape != (count, 2) or not ((self.uv >= 0) & (self.uv <= 1)).all()):
            raise ValueError(f"{self.name}: uv must be {(count, 2)} in [0, 1], got {self.uv.shape}")


@dataclass(frozen=True)
class Frustum:
    """A camera to draw: `K` (3, 3) in pixels of a `width` x `height` image, `world_from_cam` (4, 4), OpenCV axes."""

    K: np.ndarray
    world_from_cam: np.ndarray
    width: int
    height: int
    name: str = "camera"

    @classmethod
    def of_sphere(cls, world_from_cam: np.ndarray, width: int, name: str) -> Frustum:
        """Of a panorama `width` px wide: a square picture of 90 degrees along its axis, with pixels as large as the
        panorama's."""
        side = max(2, round(width / np.pi))
        K = np.array([[side / 2, 0, (side - 1) / 2], [0, side / 2, (side - 1) / 2], [0, 0, 1.0]])
        return cls(K, world_from_cam, side, side, name)


def check_points(points: np.ndarray, name: str) -> None:
    """ValueError unless `points` are (M, 3) and finite."""
    if points.shape != (len(points), 3) or not np.isfinite(points).all():
        raise ValueError(f"{name}: positions must be (M, 3) and finite, got {points.shape}")


def check_colors(colors: np.ndarray | None, count: int, name: str) -> None:
    """ValueError unless `colors` are None or (count, 3) uint8."""
    if colors is not None and (colors.shape != (count, 3) or colors.dtype != np.uint8):
        raise ValueError(f"{name}: colors must be {(count, 3)} uint8, got {colors.shape} {colors.dtype}")


def read_mesh(path: str | Path) -> Mesh:
    """All triangles of an OBJ, GLB or PLY file as one mesh in OpenCV axes, as `dune reconstruct` and `dune human` write
    them.

    GLB: y up and z backward become OpenCV's axes, and linear colours sRGB. `colors` is None unless all vertices have
    one. Points, lines and cameras are left out; of a texture the colours at the vertices are kept. UserError for
    another file, a damaged one, one of over 4 GiB, and one without triangles.
    """
    mesh = find_mesh(path)
    if mesh is None:
        raise UserError(
            f"{path} holds no triangles, only points or cameras; write a mesh by -o scene.glb, or by --mesh tsdf and "
            "-o scene.ply"
        )
    return mesh


def find_mesh(path: str | Path) -> Mesh | None:
    """As `read_mesh`; None for a file without triangles."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"the mesh {path} has the ending {suffix or '(none)'}; allowed: {' '.join(SUFFIXES)}")
    content = read_bytes(path, "a mesh file", ARRAYS_LIMIT_BYTES)
    try:
        return _merged(content, suffix, path.stem)
    except Exception as error:  # damaged bytes provoke anything in trimesh
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What to say of a mesh file whose bytes made a reader fail."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"{path} is damaged or no {path.suffix.lower()[1:].upper()} file ({reason}); write it again")


def _merged(content: bytes, suffix: str, name: str) -> Mesh | None:
    import trimesh

    if suffix == ".glb":
        _check_counts(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = trimesh.load_scene(io.BytesIO(content), file_type=suffix[1:], process=False)
    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]  # (world_from_mesh, name of the mesh)
    meshes = [(world_from_mesh, scene.geometry[own]) for world_from_mesh, own in placed]
    meshes = [(world_from_mesh, mesh) for world_from_mesh, mesh in meshes if len(getattr(mesh, "faces", ()))]
    if not meshes:
        return None
    vertices, faces = trimesh.util.append_faces(
        [trimesh.transform_points(mesh.vertices, world_from_mesh) for world_from_mesh, mesh in meshes],
        [mesh.faces for _, mesh in meshes],
    )
    if suffix == ".glb":
        vertices = vertices * [1, -1, -1]
    parts = [_vertex_colors(mesh) for _, mesh in meshes]
    colors = None if any(part is None for part in parts) else np.concatenate(parts)
    return Mesh(vertices, faces, colors, name)


def _check_counts(content: bytes) -> None:
    """ValueError for a GLB whose accessors count more elements than the file has bytes."""
    length = int.from_bytes(content[12:16], "little")
    document = parse_json(content[20 : 20 + length], "its JSON")
    if any(accessor["count"] > len(content) for accessor in document.get("accessors", [])):
        raise ValueError("it counts more than its bytes hold")


def _vertex_colors(mesh: Any) -> np.ndarray | None:
    """(V, 3) uint8 sRGB; None where there are none. Those of a GLB lie beside its material and are linear."""
    if mesh.visual.kind == "vertex":
        return np.asarray(mesh.visual.vertex_colors)[:, :3]
    if mesh.visual.kind == "texture" and mesh.visual.uv is not None and _has_image(mesh.visual.material):
        return np.asarray(mesh.visual.to_color().vertex_colors)[:, :3]
    colors = getattr(mesh.visual, "vertex_attributes", {}).get("color")
    if colors is None:
        return None
    colors = np.asarray(colors)[:, :3]
    if colors.dtype.kind != "f":
        return colors.astype(np.uint8)
    return to_srgb(np.nan_to_num(colors))


def _has_image(material: Any) -> bool:
    return getattr(material, "baseColorTexture", getattr(material, "image", None)) is not None


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear RGB in [0, 1] (M, 3) as sRGB uint8 (IEC 61966-2-1); values outside are clipped."""
    linear = linear.clip(0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)
