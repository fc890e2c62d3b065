"""Render a point cloud without a viewer: `python examples/render_ply.py scene.ply scene.png --azimuth-deg 20`.

Draws every point as a square of 2 x 2 pixels, far to near, from the first camera turned around the cloud's median point
(OpenCV axes: x right, y down, z forward).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.io.formats.ply import read_ply


def render(
    points: np.ndarray, colors: np.ndarray, width: int, height: int, azimuth_deg: float, elevation_deg: float
) -> np.ndarray:
    """A picture (height, width, 3) uint8 of `points` (M, 3) with `colors` (M, 3) uint8 on white."""
    centre = np.median(points, axis=0)
    a, e = np.radians([azimuth_deg, elevation_deg])
    rotation_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    rotation_x = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    points_cam = (points - centre) @ rotation_y.T @ rotation_x.T + [0, 0, np.linalg.norm(centre)]
    in_front = points_cam[:, 2] > 1e-6
    points_cam, colors = points_cam[in_front], colors[in_front]
    spread = np.abs(points_cam[:, :2] / points_cam[:, 2:])
    focal_px = 0.48 * min(width / np.percentile(spread[:, 0], 98), height / np.percentile(spread[:, 1], 98))
    px = points_cam[:, :2] / points_cam[:, 2:] * focal_px + [(width - 1) / 2, (height - 1) / 2]
    picture = np.full((height, width, 3), 255, np.uint8)
    order = np.argsort(-points_cam[:, 2])  # far to near
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = np.floor(px[order] + [dx, dy]).astype(int).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            picture[y[inside], x[inside]] = colors[order][inside]
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ply", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--azimuth-deg", type=float, default=15.0)
    parser.add_argument("--elevation-deg", type=float, default=-5.0)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 600), metavar=("W", "H"), help="pixels")
    arguments = parser.parse_args()
    cloud = read_ply(arguments.ply)
    points = np.stack([cloud[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    colors = np.stack([cloud[channel] for channel in ("red", "green", "blue")], axis=-1)
    picture = render(points, colors, *arguments.size, arguments.azimuth_deg, arguments.elevation_deg)
    Image.fromarray(picture).save(arguments.png)
    print(arguments.png)


if __name__ == "__main__":
    main()
