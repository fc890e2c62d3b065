"""Two photos of the rendered scene with known cameras, for commands that take two photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.geometry import cameras
from support import synthetic_scenes

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_focal(300.0, WIDTH, HEIGHT)
POSES = [np.eye(4), synthetic_scenes.pose((0.02, -0.05, 0.01), (0.4, 0.02, 0.03))]
INTRINSICS = f"300,300,{(WIDTH - 1) / 2},{(HEIGHT - 1) / 2}"


def write_photos(folder: Path) -> list[Path]:
    """one.png and two.png, seen from POSES."""
    paths = [folder / "one.png", folder / "two.png"]
    for path, pose in zip(paths, POSES):
        Image.fromarray(synthetic_scenes.render(K, pose, WIDTH, HEIGHT)[0]).save(path)
    return paths
