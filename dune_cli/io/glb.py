"""The container of binary glTF 2.0 (Khronos specification, "GLB File Format"): one JSON chunk, one binary chunk.

Own code, because trimesh's exporter knows one camera, paints points black and sets no unlit material, without which
photographed colours show as shaded metal.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COMPONENT_TYPES = {np.dtype("<f4"): 5126, np.dtype("<u4"): 5125}
POINTS, LINES, TRIANGLES = 0, 1, 4  # primitive modes
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
UNLIT = "KHR_materials_unlit"


@dataclass
class GlbFile:
    """Collects buffers, meshes, cameras and nodes; `to_bytes` is the file."""

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
                "extensions": {UNLIT: {}},
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
        tree: dict[str, Any] = {"asset": asset, "scene": 0, "scenes": [{}]}
        if self.nodes:
            tree["scenes"] = [{"nodes": list(range(len(self.nodes)))}]
        if self.length:
            tree["buffers"] = [{"byteLength": self.length}]
        if self.materials:
            tree["extensionsUsed"] = [UNLIT]
        lists = {
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": self.materials,
            "cameras": self.cameras,
            "accessors": self.accessors,
            "bufferViews": self.views,
        }
        tree.update({name: values for name, values in lists.items() if values})
        text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
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
