"""A scene's JSON as the map of `dune reloc`, alone and beside a COLMAP model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.geometry.cameras import K_from_fov
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum
from dune_cli.io.png import save_png
from dune_cli.sfm.photo_map import PhotoMap, open_map
from fuzz.harness import Sample

NAMES = ("a.png", "b.png", "c.png")


def samples(folder: Path) -> Sequence[Sample]:
    K = K_from_fov(60, 320, 240)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0.0, 0.5, 1.25)
    photos = folder / "photos"
    photos.mkdir()
    for name in NAMES:
        save_png(photos / name, np.zeros((240, 320, 3), np.uint8))
    cameras = [
        {
            "image": n,
            "width": 320,
            "height": 240,
            "K": K.tolist(),
            "world_from_cam": p,
            "registered": True,
            "radial": 0.1,
        }
        for n, p in zip(NAMES, poses.tolist())
    ]
    cameras.append({"image": "lost.png", "registered": False})
    tree = {
        "schema": "dune.scene/1",
        "scale": "arbitrary",
        "scale_note": "no lengths",
        "cameras": cameras,
        "provenance": {"inputs": [{"path": str(photos / name), "sha256": ""} for name in NAMES]},
    }
    scene = {"scene.json": json.dumps(tree).encode(), "other.json": b"{}"}
    write_colmap(folder / "model", [Frustum(K, pose, 320, 240, name) for name, pose in zip(NAMES, poses)])
    beside = scene | {path.name: path.read_bytes() for path in (folder / "model").glob("*.bin")}
    return [
        Sample(scene, open_map, _is_map, ["scene.json"]),
        Sample(scene, lambda case: open_map(case, photos), _is_map),
        Sample(beside, lambda case: open_map(case, photos), _is_map),
    ]


def _is_map(found: PhotoMap) -> None:
    assert len(found.images) >= 2 and len({image.name for image in found.images}) == len(found.images)
    assert found.scale in ("metric", "arbitrary") and np.isfinite(found.extent)
    assert found.scale == "metric" or found.scale_note
    for image in found.images:
        pose, lens = image.world_from_cam, image.camera
        assert (
            pose.shape == (4, 4) and np.isfinite(pose).all() and np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3))
        )
        assert (
            0 < lens.width <= 1e6 and 0 < lens.height <= 1e6 and np.isfinite(lens.params).all() and lens.params[0] > 0
        )
        assert np.isfinite(lens.K).all() and image.file.is_file()
