"""Wavefront OBJ: triangle meshes, one group each, with vertex colours or, in files beside it, a texture.

Own code: trimesh's exporter writes eight digits after the point, so that small scenes lose precision, names as they are
(a blank ends one), no comment on axes and offset, and holds the whole text in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.formats import OPENCV_AXES, SceneData
from dune_cli.io.meshes import Mesh
from dune_cli.io.outputs import atomic_path
from dune_cli.io.png import save_png

CONTENT = ("surface",)
OFFSET = True
TEXTURE = (".mtl", ".png")
NAMED = True
LINES_AT_ONCE = 50_000


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The surface."""
    write_obj(path, scene.meshes, scene.world_offset, scene.axes)
    return []


def write_obj(
    path: str | Path, meshes: Sequence[Mesh], world_offset: np.ndarray | None = None, axes: str = OPENCV_AXES
) -> None:
    """One group a mesh (`g NAME`); vertices `x y z` or, with colours, `x y z r g b` in [0, 1].

    A textured mesh has its PNG and an MTL beside the OBJ, named like it (`texture_files`). The first comment has the
    `axes`. Another one has `world_offset` (3,), to be added to every vertex for coordinates of the world.
    """
    path = Path(path)
    textured = [mesh for mesh in meshes if mesh.texture is not None]
    pictures = texture_files(path, len(textured))
    materials = path.with_suffix(".mtl")
    if textured:
        for mesh, picture in zip(textured, pictures):
            save_png(picture, mesh.texture)
        with atomic_path(materials) as temporary:
            text = "".join(
                f"newmtl texture_{i}\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 0\nmap_Kd {picture.name}\n"
                for i, picture in enumerate(pictures)
            )
            temporary.write_text(text, encoding="utf-8", newline="\n")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"# dune: {f'OpenCV axes ({axes})' if axes == OPENCV_AXES else f'axes {axes}'}\n")
        if world_offset is not None:
            file.write(f"# world_offset {' '.join(map(str, world_offset.tolist()))} (to be added to every vertex)\n")
        if textured:
            file.write(f"mtllib {materials.name}\n")
        first, first_uv = 1, 1
        for mesh in meshes:
            file.write(f"g {re.sub(r'[^0-9A-Za-z_.-]+', '_', mesh.name) or 'mesh'}\n")
            rows = mesh.vertices if mesh.colors is None else np.hstack([mesh.vertices, mesh.colors / 255.0])
            line = "v %.8g %.8g %.8g\n" if mesh.colors is None else "v %.8g %.8g %.8g %.4f %.4f %.4f\n"
            for start in range(0, len(rows), LINES_AT_ONCE):
                part = rows[start : start + LINES_AT_ONCE]
                file.write(line * len(part) % tuple(part.ravel().tolist()))
            faces, line = mesh.faces.astype(np.int64) + first, "f %d %d %d\n"
            if mesh.uv is not None:
                uv = mesh.uv * [1, -1] + [0, 1]  # an OBJ counts from the lower left corner
                for start in range(0, len(uv), LINES_AT_ONCE):
                    part = uv[start : start + LINES_AT_ONCE]
                    file.write("vt %.7f %.7f\n" * len(part) % tuple(part.ravel().tolist()))
                number = next(i for i, one in enumerate(textured) if one is mesh)
                file.write(f"usemtl texture_{number}\n")
                faces = np.stack([faces, mesh.faces + first_uv], axis=-1).reshape(-1, 6)
                line = "f %d/%d %d/%d %d/%d\n"
                first_uv += len(uv)
            for start in range(0, len(faces), LINES_AT_ONCE):
                part = faces[start : start + LINES_AT_ONCE]
                file.write(line * len(part) % tuple(part.ravel().tolist()))
            first += len(mesh.vertices)


def texture_files(path: Path, count: int) -> list[Path]:
    """The PNGs of `count` textured meshes of an OBJ: NAME.png, NAME_1.png …"""
    return [path.with_name(f"{path.stem}{f'_{i}' if i else ''}.png") for i in range(count)]
