"""Results as `dune render` and `dune view` read them: a GLB with points and cameras, and the JSON beside a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh  # noqa: F401 (its import may warn; no case should)

from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.formats.ply import write_ply
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.results import StoredResult, read_result
from fuzz.harness import Sample

HEADER_BYTES = 20
K = np.array([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(9, 3)), rng.integers(0, 256, (9, 3)).astype(np.uint8)
    mesh = Mesh(points, rng.integers(0, 9, (7, 3)), colors, "one")
    write_glb(folder / "r.glb", [mesh], points, colors, [Frustum(K, np.eye(4), 32, 24, "a.png")])
    glb = (folder / "r.glb").read_bytes()
    end = HEADER_BYTES + int.from_bytes(glb[12:16], "little")
    write_ply(folder / "r.ply", points, colors)
    camera = {"image": "a.png", "width": 32, "height": 24, "K": K, "world_from_cam": np.eye(4), "registered": True}
    scene = {"schema": "dune.scene/1", "scale": "metric", "cameras": [camera], "points": {"file": "r.ply"}}
    write_json(folder / "scene.json", scene | {"mesh": None, "provenance": {"inputs": [{"path": "a.png"}]}})
    write_npz(folder / "d.npz", depth=rng.random((24, 32)).astype(np.float32) + 1, K=K)
    image = {"path": "a.png", "width": 32, "height": 24}
    camera = {"model": "SIMPLE_RADIAL", "params": [30, 15.5, 11.5, 0.1]}
    depth = {"schema": "dune.depth/1", "file": "d.npz", "image": image, "scale": "metric", "K": K, "camera": camera}
    write_json(folder / "d.json", depth)
    made = {name: (folder / name).read_bytes() for name in ("r.ply", "scene.json", "d.npz", "d.json")}
    return [
        Sample({"tree.json": glb[HEADER_BYTES:end], "body": glb[end:]}, _read_glb, _is_shown, ["tree.json"]),
        Sample({"r.ply": made["r.ply"], "r.json": made["scene.json"]}, _read, _is_shown, ["r.json"]),
        Sample({"d.npz": made["d.npz"], "d.json": made["d.json"]}, _read, _is_shown),
    ]


def _read(case: Path) -> StoredResult:
    return read_result(next(path for path in case.iterdir() if path.suffix in (".ply", ".npz")))


def _read_glb(case: Path) -> StoredResult:
    """The JSON chunk was damaged; the lengths fit it."""
    tree, body = (case / "tree.json").read_bytes(), (case / "body").read_bytes()
    tree += b" " * (-len(tree) % 4)
    sizes = [size.to_bytes(4, "little") for size in (2, HEADER_BYTES + len(tree) + len(body), len(tree))]
    (case / "m.glb").write_bytes(b"glTF" + b"".join(sizes) + b"JSON" + tree + body)
    return read_result(case / "m.glb")


def _is_shown(result: StoredResult) -> None:
    assert len(result.positions) and np.isfinite(result.positions).all()
    assert len(result.photos) == len(result.data.cameras)
    assert all(np.isfinite(camera.world_from_cam).all() and camera.width > 0 for camera in result.data.cameras)
    assert result.data.colors is None or result.data.colors.shape == result.data.points.shape
