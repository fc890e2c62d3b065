"""A map of the ray-cast scene: photos on the disk, a COLMAP model of their true poses, and queries beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dune_cli.geometry import cameras
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum
from dune_cli.io.png import save_png
from support import synthetic_scenes

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
POSES = {
    "a.png": synthetic_scenes.pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "b.png": synthetic_scenes.pose((0.02, -0.06, 0.0), (0.5, 0.0, 0.1)),
    "c.png": synthetic_scenes.pose((0.0, 0.07, 0.01), (-0.5, 0.05, 0.2)),
    "d.png": synthetic_scenes.pose((-0.02, -0.02, 0.0), (0.2, -0.3, 0.5)),
}
QUERY = synthetic_scenes.pose((0.01, -0.03, 0.01), (0.25, 0.05, 0.3))


def rendered(pose: np.ndarray, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8; another `seed` is another place."""
    return synthetic_scenes.render(K, pose, WIDTH, HEIGHT, seed)[0]


def write_photos(folder: Path) -> None:
    """The map's photos in images/, and query.png and elsewhere.png beside it."""
    (folder / "images").mkdir()
    for name, pose in POSES.items():
        save_png(folder / "images" / name, rendered(pose))
    save_png(folder / "query.png", rendered(QUERY))
    save_png(folder / "elsewhere.png", rendered(QUERY, seed=7))


def write_model(folder: Path, scale: float = 1.0, binary: bool = True, names: tuple[str, ...] = tuple(POSES)) -> None:
    """A COLMAP model of the map's cameras, all lengths times `scale`, without points."""
    frusta = []
    for name in names:
        pose = POSES[name].copy()
        pose[:3, 3] *= scale
        frusta.append(Frustum(K, pose, WIDTH, HEIGHT, name))
    write_colmap(folder, frusta, binary=binary)
