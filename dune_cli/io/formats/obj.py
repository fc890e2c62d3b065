"""Wavefront OBJ: triangle meshes, one group each, with vertex colours.

Own code: trimesh's exporter writes eight digits after the point, so that small scenes lose precision, names as they are
(a blank ends one), no comment on axes and offset, and holds the whole text in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import atomic_path

CONTENT = ("surface",)
OFFSET = True
LINES_AT_ONCE = 50_000


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The surface."""
    write_obj(path, scene.meshes, scene.world_offset)
    return []


def write_obj(path: str | Path, meshes: Sequence[Mesh], world_offset: np.ndarray | None = None) -> None:
    """One group a mesh (`g NAME`); vertices `x y z` or, with colours, `x y z r g b` in [0, 1]; OpenCV axes.

    A comment has `world_offset` (3,), to be added to every vertex for coordinates of the world.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("# dune: OpenCV axes (x right, y down, z forward)\n")
        if world_offset is not None:
            file.write(f"# world_offset {' '.join(map(str, world_offset.tolist()))} (to be added to every vertex)\n")
        first = 1
        for mesh in meshes:
            file.write(f"g {re.sub(r'[^0-9A-Za-z_.-]+', '_', mesh.name) or 'mesh'}\n")
            rows = mesh.vertices if mesh.colors is None else np.hstack([mesh.vertices, mesh.colors / 255.0])
            line = "v %.8g %.8g %.8g\n" if mesh.colors is None else "v %.8g %.8g %.8g %.4f %.4f %.4f\n"
            for start in range(0, len(rows), LINES_AT_ONCE):
                part = rows[start : start + LINES_AT_ONCE]
                file.write(line * len(part) % tuple(part.ravel().tolist()))
            faces = mesh.faces.astype(np.int64) + first
            for start in range(0, len(faces), LINES_AT_ONCE):
                part = faces[start : start + LINES_AT_ONCE]
                file.write("f %d %d %d\n" * len(part) % tuple(part.ravel().tolist()))
            first += len(mesh.vertices)
