"""Triangle meshes as one PLY: binary little-endian, coloured vertices that know their mesh, triangles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.atomic import atomic_path
from dune_cli.io.mesh import Mesh

_COLOURS = [(name, "u1") for name in ("red", "green", "blue")]
_FACE = [("count", "u1"), ("indices", "<i4", 3)]
GREY = 200


def write_ply_mesh(path: str | Path, meshes: Sequence[Mesh], doubles: bool = False) -> None:
    """All `meshes` in one file, OpenCV axes; PLY has no groups, so a vertex carries the number of its `mesh`.

    Meshes without colours are light grey. Coordinates are float32 or, for large ones, `doubles`.
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
        "comment dune: OpenCV axes (x right, y down, z forward)",
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
