"""A small ray-cast data set in the layout of the Map-free benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dune_cli.geometry import cameras, poses
from dune_cli.io.png import save_png
from support import synthetic_scenes

WIDTH, HEIGHT, FRAMES = 120, 160, 16
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
TRACK = ["seq1/frame_00000.jpg", "seq1/frame_00005.jpg", "seq1/frame_00010.jpg", "seq1/frame_00015.jpg"]


def world_from_query(scene: int, frame: int) -> np.ndarray:
    return synthetic_scenes.pose((0.01 * scene, -0.004 * frame, 0.0), (0.25 + 0.01 * frame, 0.05 * scene, 0.02))


def write_root(root: Path) -> Path:
    """<root>/val with two scenes; every fifth query photo is there, and one that is not asked for."""
    for scene in (0, 1):
        folder = root / "val" / f"s0000{scene}"
        names = ["seq0/frame_00000.jpg", *(f"seq1/frame_{frame:05d}.jpg" for frame in range(FRAMES))]
        truth, lines = [], ["# frame fx fy cx cy W H"]
        for index, name in enumerate(names):
            pose = np.eye(4) if index == 0 else world_from_query(scene, index - 1)
            if index == 0 or name in TRACK or name == "seq1/frame_00003.jpg":
                rgb = synthetic_scenes.render(K, pose, WIDTH, HEIGHT, seed=scene)[0]
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                save_png(folder / f"{name}.png", rgb)
                (folder / f"{name}.png").rename(folder / name)  # lossless under the data set's names
            cam_from_world = poses.inverse(pose)
            values = [*poses.quaternion_from_rotation(cam_from_world[:3, :3]), *cam_from_world[:3, 3]]
            truth.append(" ".join([name, *(f"{value:.9f}" for value in values)]))
            lines.append(f"{name} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]} {WIDTH} {HEIGHT}")
        (folder / "intrinsics.txt").write_text("\n".join(lines) + "\n")
        (folder / "poses.txt").write_text("\n".join(truth) + "\n")
    return root
