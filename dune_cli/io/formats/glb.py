"""Binary glTF 2.0 (GLB): triangle meshes, points and cameras in one file (Khronos specification, "GLB File Format").

Own code, because trimesh's exporter writes one camera and no unlit material, without which viewers show photographed
colours as shaded metal, and writes sRGB values where glTF has linear ones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Frustum, Mesh, check_colors, check_points
from dune_cli.io.outputs import atomic_path

CONTENT = ("surface", "points")
OFFSET = True
AXES = "GLB: y up, z backward"
UNLIT = True

COMPONENT_TYPES = {np.dtype("<f4"): 5126, np.dtype("<u4"): 5125}
POINTS, LINES, TRIANGLES = 0, 1, 4  # primitive modes
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
UNLIT_EXTENSION = "KHR_materials_unlit"
GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # y up, z backward; its own inverse
FRUSTUM_LINES = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1])
FRUSTUM_COLOR = (0.9, 0.25, 0.05)


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The surface or the points, and the cameras."""
    write_glb(path, scene.meshes, scene.points, scene.colors, scene.cameras, scene.world_offset)
    return ["POSITION", "COLOR_0"]


def write_glb(
    path: str | Path,
    meshes: Sequence[Mesh],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    cameras: Sequence[Frustum] = (),
    world_offset: np.ndarray | None = None,
) -> None:
    """Meshes, `points` (M, 3) with `colors` (M, 3) uint8, and cameras in one binary glTF file.

    OpenCV axes become glTF's (y up, z backward) and sRGB colours linear ones. Materials are unlit, so that photographed
    colours show as they are. A camera is a glTF camera (fields of view about the optical axis) with its exact K and
    size in `extras`, and the outline of its frustum, 5 % of the scene long. Empty meshes are left out. `asset.extras`
    has `world_offset` (3,), to be added to all coordinates (OpenCV axes) for those of the world.
    """
    file = GlbFile()
    meshes = [mesh for mesh in meshes if len(mesh.faces)]
    clouds = [mesh.vertices for mesh in meshes]
    photo = file.add_material("photo", (1.0, 1.0, 1.0))
    for mesh in meshes:
        shown = None if mesh.colors is None else _linear(mesh.colors)
        index = file.add_mesh(mesh.name, TRIANGLES, _to_gltf(mesh.vertices), photo, mesh.faces, shown)
        file.add_node({"name": mesh.name, "mesh": index})
    if points is not None and len(points):
        check_points(points, "points")
        check_colors(colors, len(points), "points")
        shown = None if colors is None else _linear(colors)
        file.add_node({"name": "points", "mesh": file.add_mesh("points", POINTS, _to_gltf(points), photo, None, shown)})
        clouds.append(points)
    if cameras:
        length = _frustum_length(clouds, cameras)
        material = file.add_material("camera", FRUSTUM_COLOR)
        for camera in cameras:
            _add_camera(file, camera, length, material)
    if world_offset is not None:
        file.extras["world_offset"] = world_offset.tolist()
    content = file.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _to_gltf(points: np.ndarray) -> np.ndarray:
    return points * np.diag(GLTF_FROM_OPENCV)[:3]


def _linear(colors: np.ndarray) -> np.ndarray:
    """sRGB (M, 3) uint8 to linear RGB (M, 3) float32 (IEC 61966-2-1)."""
    levels = np.arange(256) / 255.0
    table = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[colors]


def _frustum_length(clouds: Sequence[np.ndarray], cameras: Sequence[Frustum]) -> float:
    """5 % of the diagonal of the box that holds the middle 90 % of the points, or of the cameras without any."""
    centres = np.array([camera.world_from_cam[:3, 3] for camera in cameras])
    low, high = np.percentile(np.concatenate(clouds), [5, 95], axis=0) if clouds else (centres.min(0), centres.max(0))
    return 0.05 * float(np.linalg.norm(high - low)) or 1.0


def _add_camera(file: GlbFile, camera: Frustum, length: float, material: int) -> None:
    K, width, height = np.asarray(camera.K, np.float64), camera.width, camera.height
    x, y = np.array([-0.5, width - 0.5]), np.array([-0.5, height - 0.5])
    corners = np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    rays = corners @ np.linalg.inv(K).T
    outline = _to_gltf(np.vstack([np.zeros(3), rays * length]))
    file.cameras.append(
        {
            "name": camera.name,
            "type": "perspective",
            "perspective": {
                "yfov": 2 * float(np.arctan(height / 2 / K[1, 1])),
                "aspectRatio": float(width / K[0, 0] / (height / K[1, 1])),
                "znear": 0.01 * length,
            },
            "extras": {"K": K.tolist(), "width": width, "height": height},
        }
    )
    pose = GLTF_FROM_OPENCV @ np.asarray(camera.world_from_cam, np.float64) @ GLTF_FROM_OPENCV
    placed = {"name": camera.name, "matrix": pose.T.ravel().tolist()}
    frustum = file.add_mesh(f"{camera.name} frustum", LINES, outline, material, FRUSTUM_LINES)
    file.add_node(placed | {"camera": len(file.cameras) - 1})
    file.add_node(placed | {"name": f"{camera.name} frustum", "mesh": frustum})  # readers drop a mesh beside a camera


@dataclass
class GlbFile:
    """Collects buffers, meshes, cameras and nodes; `to_bytes` returns the file."""

    materials: list[dict[str, Any]] = field(default_factory=list)
    meshes: list[dict[str, Any]] = field(default_factory=list)
    cameras: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    length: int = 0

    def add_material(self, name: str, color: tuple[float, float, float]) -> int:
        """An unlit, double-sided material of a linear RGB colour, multiplied with vertex colours."""
        self.materials.append(
            {
                "name": name,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*color, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
                "doubleSided": True,
                "extensions": {UNLIT_EXTENSION: {}},
            }
        )
        return len(self.materials) - 1

    def add_mesh(
        self,
        name: str,
        mode: int,
        vertices: np.ndarray,
        material: int,
        indices: np.ndarray | None = None,
        colors: np.ndarray | None = None,
    ) -> int:
        """A mesh of one primitive: `vertices` (V, 3), flat `indices`, `colors` (V, 3) linear RGB in [0, 1]."""
        attributes = {"POSITION": self._accessor(vertices.astype("<f4"), "VEC3", ARRAY_BUFFER, bounds=True)}
        if colors is not None:
            attributes["COLOR_0"] = self._accessor(colors.astype("<f4"), "VEC3", ARRAY_BUFFER)
        primitive: dict[str, Any] = {"attributes": attributes, "mode": mode, "material": material}
        if indices is not None:
            primitive["indices"] = self._accessor(indices.reshape(-1).astype("<u4"), "SCALAR", ELEMENT_ARRAY_BUFFER)
        self.meshes.append({"name": name, "primitives": [primitive]})
        return len(self.meshes) - 1

    def add_node(self, node: dict[str, Any]) -> None:
        """A node at the root of the scene."""
        self.nodes.append(node)

    def to_bytes(self) -> bytes:
        """The whole GLB file."""
        asset: dict[str, Any] = {"version": "2.0", "generator": "dune"}
        if self.extras:
            asset["extras"] = self.extras
        document: dict[str, Any] = {"asset": asset, "scene": 0, "scenes": [{}]}
        if self.nodes:
            document["scenes"] = [{"nodes": list(range(len(self.nodes)))}]
        if self.length:
            document["buffers"] = [{"byteLength": self.length}]
        if self.materials:
            document["extensionsUsed"] = [UNLIT_EXTENSION]
        lists = {
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": self.materials,
            "cameras": self.cameras,
            "accessors": self.accessors,
            "bufferViews": self.views,
        }
        document.update({name: values for name, values in lists.items() if values})
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        parts = [struct.pack("<I4s", len(text), b"JSON"), text]
        if self.length:
            parts += [struct.pack("<I4s", self.length, b"BIN\0"), *self.chunks]
        total = 12 + sum(map(len, parts))
        if total >= 1 << 32:
            raise ValueError(f"a GLB file holds at most 4 GiB, this one would need {total / 2**30:.1f}")
        return b"".join([struct.pack("<4sII", b"glTF", 2, total), *parts])

    def _accessor(self, array: np.ndarray, kind: str, target: int, bounds: bool = False) -> int:
        """Four-byte components only, so every view is aligned."""
        content = array.tobytes()
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": len(content), "target": target})
        self.chunks.append(content)
        self.length += len(content)
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": COMPONENT_TYPES[array.dtype],
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1
