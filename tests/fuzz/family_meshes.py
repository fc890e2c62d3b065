"""Triangle meshes as OBJ, GLB and PLY."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh  # noqa: F401 (its import may warn; no case should)

from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.formats.ply import write_ply_mesh
from dune_cli.io.meshes import Mesh, read_mesh
from fuzz.harness import Sample

HEADER_BYTES = 20


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    meshes = [
        Mesh(rng.normal(size=(9, 3)), rng.integers(0, 9, (7, 3)), rng.integers(0, 256, (9, 3)).astype(np.uint8), name)
        for name in ("one", "two")
    ]
    write_glb(folder / "m.glb", meshes)
    write_obj(folder / "m.obj", meshes)
    write_ply_mesh(folder / "m.ply", meshes)
    glb, ply = (folder / "m.glb").read_bytes(), (folder / "m.ply").read_bytes()
    end = HEADER_BYTES + int.from_bytes(glb[12:16], "little")
    head = ply[: ply.index(b"end_header")]
    return [
        Sample({"m.glb": glb}, _read, _is_mesh, kinds={"m.glb": "bytes"}),
        Sample({"tree.json": glb[HEADER_BYTES:end], "body": glb[end:]}, _read_glb, _is_mesh, ["tree.json"]),
        Sample({"m.obj": (folder / "m.obj").read_bytes()}, _read, _is_mesh, kinds={"m.obj": "text"}),
        Sample({"m.ply": ply}, _read, _is_mesh, kinds={"m.ply": "bytes"}),
        Sample({"head.txt": head, "body": ply[len(head) :]}, _read_ply, _is_mesh, ["head.txt"], {"head.txt": "ply"}),
    ]


def _read(case: Path) -> Mesh:
    return read_mesh(next(path for path in case.iterdir() if path.stem == "m"))


def _read_glb(case: Path) -> Mesh:
    """The JSON chunk was damaged; the lengths fit it."""
    tree, body = (case / "tree.json").read_bytes(), (case / "body").read_bytes()
    tree += b" " * (-len(tree) % 4)
    sizes = [size.to_bytes(4, "little") for size in (2, HEADER_BYTES + len(tree) + len(body), len(tree))]
    (case / "m.glb").write_bytes(b"glTF" + b"".join(sizes) + b"JSON" + tree + body)
    return _read(case)


def _read_ply(case: Path) -> Mesh:
    (case / "m.ply").write_bytes((case / "head.txt").read_bytes() + (case / "body").read_bytes())
    return _read(case)


def _is_mesh(mesh: Mesh) -> None:
    assert mesh.faces.shape[1] == 3 and len(mesh.faces) and np.isfinite(mesh.vertices).all()
    assert mesh.colors is None or mesh.colors.shape == mesh.vertices.shape
