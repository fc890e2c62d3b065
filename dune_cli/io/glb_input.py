"""The points and the cameras of a GLB file (Khronos, "glTF 2.0 Specification", sections 3.6, 3.7 and 3.10).

trimesh reads the triangles (io/meshes.py). It keeps colours of points in 8 bits, in which linear colours lose their
dark tones, and one camera of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.geometry.poses import rotation_from_quaternion
from dune_cli.io.camera_checks import LARGEST_SIDE_PX, pinhole_matrix, rigid_pose
from dune_cli.io.meshes import Frustum, to_srgb
from dune_cli.io.safe_read import parse_json

HEADER_BYTES = 20  # of the file and of its first chunk
POINTS_MODE = 0
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
OPENCV_FROM_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])  # its own inverse
UNKNOWN_HEIGHT_PX = 480  # of a camera whose image no field states


class GlbInput:
    """A GLB's JSON and binary chunk. ValueError (or KeyError, IndexError, TypeError) for damaged ones."""

    def __init__(self, content: bytes) -> None:
        length = int.from_bytes(content[12:16], "little")
        self.document: dict[str, Any] = parse_json(content[HEADER_BYTES : HEADER_BYTES + length], "its JSON")
        self.body = content[HEADER_BYTES + length + 8 :]
        self.nodes: list[dict[str, Any]] = self.document.get("nodes", [])

    @property
    def is_skinned(self) -> bool:
        """Whether joints move its meshes, which are read at rest."""
        return any("skin" in node for node in self.nodes)

    def points(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All points (N, 3) in OpenCV axes, and their colours (N, 3) uint8 sRGB; None unless all have some."""
        positions: list[np.ndarray] = [np.zeros((0, 3))]
        colors: list[np.ndarray | None] = []
        for node, scene_from_node in self._placed():
            if "mesh" not in node:
                continue
            for primitive in self.document["meshes"][node["mesh"]]["primitives"]:
                if primitive.get("mode", 4) != POINTS_MODE:
                    continue
                own = self._accessor(primitive["attributes"]["POSITION"])
                positions.append((own @ scene_from_node[:3, :3].T + scene_from_node[:3, 3]) * [1, -1, -1])
                index = primitive["attributes"].get("COLOR_0")
                colors.append(None if index is None else to_srgb(self._accessor(index)[:, :3]))
                if colors[-1] is not None and colors[-1].shape != own.shape:
                    raise ValueError("it has other numbers of colours than points")
        listed = [color for color in colors if color is not None]
        return np.concatenate(positions), np.concatenate(listed) if listed and len(listed) == len(colors) else None

    def cameras(self) -> list[Frustum]:
        """The perspective cameras in OpenCV axes; K and size as `extras` have them, else by the field of view."""
        found = []
        for node, scene_from_node in self._placed():
            camera = self.document["cameras"][node["camera"]] if "camera" in node else {}
            if camera.get("type") != "perspective":
                continue
            name = str(node.get("name", "camera"))
            extras = camera.get("extras") or {}
            if {"K", "width", "height"} <= set(extras):
                width, height = (int(extras[side]) for side in ("width", "height"))
                if not 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE_PX:
                    raise ValueError(f"a camera's image has {width} x {height} px")
                K = pinhole_matrix(extras["K"], "the camera's K", width, height)
            else:
                height = UNKNOWN_HEIGHT_PX
                width = max(1, round(height * float(camera["perspective"].get("aspectRatio", 4 / 3))))
                focal_px = height / 2 / np.tan(float(camera["perspective"]["yfov"]) / 2)
                K = pinhole_matrix(K_from_focal(focal_px, width, height), "the camera", width, height)
            pose = OPENCV_FROM_GLTF @ scene_from_node @ OPENCV_FROM_GLTF
            found.append(Frustum(K, rigid_pose(pose, "the camera's pose"), width, height, name))
        return found

    def _placed(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """(node, scene_from_node (4, 4)) of the nodes of the scene; ValueError where they form a circle."""
        if not self.nodes:
            return []
        scene = self.document.get("scenes", [{}])[self.document.get("scene", 0)]
        placed: list[tuple[dict[str, Any], np.ndarray]] = []
        todo = [(index, np.eye(4)) for index in scene.get("nodes", range(len(self.nodes)))]
        while todo:
            index, scene_from_parent = todo.pop(0)
            node = self.nodes[index]
            scene_from_node = scene_from_parent @ _matrix(node)
            placed.append((node, scene_from_node))
            todo += [(child, scene_from_node) for child in node.get("children", [])]
            if len(placed) > len(self.nodes):
                raise ValueError("its nodes form a circle")
        return placed

    def _accessor(self, index: int) -> np.ndarray:
        """(count, width) float64; normalised integers in [0, 1] or [-1, 1]."""
        accessor = self.document["accessors"][index]
        view = self.document["bufferViews"][accessor["bufferView"]]
        kind, width, count = (
            np.dtype(COMPONENTS[accessor["componentType"]]),
            WIDTHS[accessor["type"]],
            accessor["count"],
        )
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        stride = view.get("byteStride", kind.itemsize * width)
        rows = np.ndarray((count, width), kind, self.body, start, (stride, kind.itemsize))
        values = rows.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds numbers that are not finite")
        return values / np.iinfo(kind).max if kind.kind != "f" else values


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """(4, 4) parent_from_node of a node's matrix, or translation, rotation and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        matrix[:3, :3] = rotation_from_quaternion(np.roll(np.array(node["rotation"], np.float64), 1))
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = np.array(node.get("translation", (0, 0, 0)), np.float64)
    return matrix
