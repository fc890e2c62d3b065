"""Render a mesh without a viewer: `python examples/render_mesh.py scene.glb scene.png --azimuth-deg 20`.

Draws the triangles of a GLB, OBJ or PLY of `dune reconstruct` with their colours, far to near, from the first camera
turned around the mesh's median vertex (OpenCV axes: x right, y down, z forward). `--shaded` replaces the colours by the
shading of a light at the camera, which shows the relief of the surface.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.meshes import read_mesh


def render(
    vertices: np.ndarray,
    faces: np.ndarray,
    colors: np.ndarray | None,
    width: int,
    height: int,
    world_from_cam: np.ndarray,
    focal_px: float,
) -> np.ndarray:
    """A picture (height, width, 3) uint8 of a mesh on white; without `colors` shaded by a light at the camera."""
    cam = (vertices - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    faces = faces[(cam[faces, 2] > 1e-6).all(1)]
    faces = faces[np.argsort(-cam[faces, 2].mean(1))]  # far to near
    corners = cam[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    centroid = corners.mean(1)
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(centroid, axis=1)
    facing = np.abs((normals * centroid).sum(1)) / np.maximum(lengths, 1e-30)
    paint = np.repeat(60 + 180 * facing[:, None], 3, 1) if colors is None else colors[faces].mean(1)
    px = corners[..., :2] / corners[..., 2:] * focal_px + [(width - 1) / 2, (height - 1) / 2]
    inside = (px.max(1) > -1).all(1) & (px.min(1) < [width, height]).all(1)
    sixteenths = np.rint(px[inside] * 16).clip(-(2**20), 2**20).astype(np.int32)  # sixteenths of a pixel
    image = np.full((height, width, 3), 255, np.uint8)
    for triangle, color in zip(sixteenths, paint[inside].tolist()):
        cv2.fillConvexPoly(image, triangle, color, cv2.LINE_8, 4)
    return image


def orbit_pose(vertices: np.ndarray, azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """(4, 4) world_from_cam of a camera at the world's origin, turned about the median vertex."""
    centre = np.median(vertices, axis=0)
    a, e = np.radians([azimuth_deg, elevation_deg])
    rotation_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    rotation_x = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    pose = np.eye(4)
    pose[:3, :3] = rotation_y.T @ rotation_x.T
    pose[:3, 3] = centre - pose[:3, :3] @ [0, 0, np.linalg.norm(centre)]
    return pose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mesh", type=Path, help="GLB, OBJ or PLY")
    parser.add_argument("png", type=Path)
    parser.add_argument("--azimuth-deg", type=float, default=15.0)
    parser.add_argument("--elevation-deg", type=float, default=-5.0)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 600), metavar=("W", "H"), help="pixels")
    parser.add_argument("--shaded", action="store_true", help="without colours")
    arguments = parser.parse_args()
    try:
        mesh = read_mesh(arguments.mesh)
    except UserError as error:
        raise SystemExit(f"{error} (points: examples/render_ply.py)") from error
    pose = orbit_pose(mesh.vertices, arguments.azimuth_deg, arguments.elevation_deg)
    colors = None if arguments.shaded else mesh.colors
    picture = render(mesh.vertices, mesh.faces, colors, *arguments.size, pose, arguments.size[0])
    Image.fromarray(picture).save(arguments.png)
    print(arguments.png)


if __name__ == "__main__":
    main()
