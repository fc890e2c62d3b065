"""A photo set in the layout of `cameras.json`, rendered from the ray-cast scene, with depth if asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.geometry import cameras
from support import synthetic_scenes

SIZE, VIEWS = (320, 240), 5
K = cameras.K_from_focal(280.0, *SIZE)
POSES = np.stack(
    [synthetic_scenes.pose((0.02 * v, -0.05 * v, 0.0), (0.4 * v, 0.1 * (v % 2), 0.15 * v)) for v in range(VIEWS)]
)


def write_set(folder: Path, scale: str = "metric (metres)", depth: bool = False) -> Path:
    """The root above the set "made": VIEWS photos, in metres by `scale`."""
    (folder / "made").mkdir(parents=True)
    frames = []
    for view, pose in enumerate(POSES):
        rgb, z = synthetic_scenes.render(K, pose, *SIZE)
        Image.fromarray(rgb).save(folder / "made" / f"{view}.png")
        frame = {
            "file": f"{view}.png", "width": SIZE[0], "height": SIZE[1],
            "K": K.tolist(), "T_cam_to_world": pose.tolist(),
        }  # fmt: skip
        if depth:
            millimetres = np.nan_to_num(1000 * z).astype(np.uint16)
            Image.fromarray(millimetres).save(folder / "made" / f"{view}_depth.png")
            frame |= {"depth": f"{view}_depth.png", "depth_scale": 1000}
        frames.append(frame)
    (folder / "made" / "cameras.json").write_text(json.dumps({"name": "made", "scale": scale, "frames": frames}))
    return folder
