"""Photos of the ray-cast scene from places along an arc, as files with known cameras, and what makes them hard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.geometry import cameras, poses
from dune_cli.sfm.scene import Scene
from support import synthetic_scenes

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_focal(300.0, WIDTH, HEIGHT)
INTRINSICS = f"300,300,{(WIDTH - 1) / 2},{(HEIGHT - 1) / 2}"


def arc(index: int) -> np.ndarray:
    """`world_from_cam` of the place `index`: steps of about 0.25 to the side, turning back to the scene."""
    x = 0.25 * index
    return synthetic_scenes.pose((0.01 * (index % 3), -0.05 * index, 0.01), (x, -0.04 * (index % 2), 0.05 * index))


@lru_cache(maxsize=64)
def picture(index: int, seed: int = 0, portrait: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 from the place `index`; with another `seed` of another scene; `portrait`: the camera turned."""
    if portrait:
        turned = cameras.K_from_focal(300.0, HEIGHT, WIDTH)
        return synthetic_scenes.render(turned, arc(index), HEIGHT, WIDTH, seed, samples=1)[0]
    return synthetic_scenes.render(K, arc(index), WIDTH, HEIGHT, seed, samples=1)[0]


def write(folder: Path, places: Sequence[int], seed: int = 0, prefix: str = "p", portrait: bool = False) -> list[Path]:
    """The pictures as PREFIX0.png, ... (named by their places) in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{index}.png" for index in places]
    for path, index in zip(paths, places):
        Image.fromarray(picture(index, seed, portrait)).save(path)
    return paths


def worst_errors_deg(scene: Scene, places: Sequence[int]) -> tuple[float, float]:
    """Of all pairs of placed views, the largest error of the rotation and of the direction between the cameras."""
    placed = scene.registered
    errors = []
    for a in placed:
        for b in placed:
            if a < b:
                found = poses.inverse(scene.views[a].world_from_cam) @ scene.views[b].world_from_cam
                truth = poses.inverse(arc(places[a])) @ arc(places[b])
                errors.append(
                    (
                        poses.rotation_angle(found[:3, :3].T @ truth[:3, :3]),
                        poses.vector_angle(found[:3, 3], truth[:3, 3]),
                    )
                )
    rotation, direction = np.degrees(np.array(errors)).max(axis=0)
    return float(rotation), float(direction)
