"""Pictures of a scene without browser or graphics card: triangles by the rasteriser, points as squares by depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dune_cli.geometry.framing import VirtualCamera, frame_camera, frame_extent
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.canvas import Canvas
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Frustum
from dune_cli.io.rendering import FINE_PIXELS

NEAREST = 1e-3  # of the distance to the pivot: what is nearer is not drawn
COVER = 1.5  # so many times do the points cover the picture, by their number, where their size is not given
LARGEST_POINT_PX = 5
FRUSTUM_COLOR = (230, 60, 15)
FRUSTUM_SHARE = 0.1  # length of a drawn camera, of the distance to the pivot
EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def draw(
    data: SceneData,
    camera: VirtualCamera,
    background: tuple[int, int, int] = (255, 255, 255),
    point_px: int | None = None,
    cameras: bool = False,
    smooth: bool = True,
) -> np.ndarray:
    """The picture (height, width, 3) uint8 of a scene: what is nearer hides what is farther.

    Meshes and points need colours (`recolored`). A point is a square of `point_px` pixels; None: by their number.
    `cameras`: with the outlines of the scene's own cameras. `smooth`: two samples a pixel and direction in pictures of
    up to 4 megapixels.
    """
    fine = 2 if smooth and camera.width * camera.height <= FINE_PIXELS else 1
    width, height = fine * camera.width, fine * camera.height
    K = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2], [0, 0, 1]]) @ camera.K
    cam_from_world = inverse(camera.world_from_cam)
    near = NEAREST * float(np.linalg.norm(camera.pivot_world - camera.world_from_cam[:3, 3]))
    canvas = Canvas(width, height, K, near, background)
    for mesh in data.meshes:
        assert mesh.colors is not None
        canvas.add_triangles(transform_points(cam_from_world, mesh.vertices), mesh.faces, mesh.colors)
    if data.points is not None and len(data.points):
        assert data.colors is not None
        points = transform_points(cam_from_world, data.points)
        side = fine * point_px if point_px else _point_side(points, camera, near, fine)
        canvas.add_points(points, data.colors, side)
    if cameras:
        length = FRUSTUM_SHARE * near / NEAREST
        for one in data.cameras:
            lines = transform_points(cam_from_world, _outline(one, length, max(camera.width, camera.height)))
            canvas.add_points(lines, np.broadcast_to(np.uint8(FRUSTUM_COLOR), lines.shape), fine)
    return canvas.reduced(fine)


def picture_size(cameras: Sequence[Frustum], long_side_px: int) -> tuple[int, int]:
    """Width and height of a picture `long_side_px` long in the shape of the first camera's photo, else 4:3; even
    numbers."""
    width, height = (cameras[0].width, cameras[0].height) if len(cameras) else (4, 3)
    scale = long_side_px / max(width, height)
    return max(16, 2 * round(width * scale / 2)), max(16, 2 * round(height * scale / 2))


def view_of(points: np.ndarray, cameras: Sequence[Frustum], size: tuple[int, int]) -> tuple[VirtualCamera, str]:
    """The camera that shows the points (N, 3) in a picture of `size`, and what it follows: "camera NAME", the first of
    `cameras`, or "extent"."""
    if not len(cameras):
        return frame_extent(points, size), "extent"
    first = cameras[0]
    view = frame_camera(first.K, first.world_from_cam, (first.width, first.height), size, points)
    return view, f"camera {first.name}"


def orbit(camera: VirtualCamera, frames: int, degrees: float) -> Iterator[VirtualCamera]:
    """A full turn about the pivot for 360 degrees; for less a swing to both sides and back, which ends as it began."""
    for index in range(frames):
        share = index / frames
        angle = 360 * share if degrees >= 360 else degrees / 2 * math.sin(2 * math.pi * share)
        yield camera.turned(angle, 0)


def _point_side(points_cam: np.ndarray, camera: VirtualCamera, near: float, fine: int) -> int:
    """The side of a point in samples of the picture, `fine` a pixel, by the number of those in the picture. Rounded
    up: points that are a bit smaller than their distance leave a grid of gaps, and a surface looks half-transparent."""
    ahead = points_cam[points_cam[:, 2] >= near] @ camera.K.T
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = ahead[:, :2] / ahead[:, 2:]
        count = ((pixels > -1) & (pixels < [camera.width, camera.height])).all(1).sum()
    side = math.sqrt(COVER * camera.width * camera.height / max(count, 1))
    return min(max(math.ceil(fine * side), fine), fine * LARGEST_POINT_PX)


def _outline(camera: Frustum, length: float, steps: int) -> np.ndarray:
    """(N, 3) points in the world along the edges of a camera's pyramid, `length` deep."""
    x, y = (-0.5, camera.width - 0.5), (-0.5, camera.height - 0.5)
    corners = np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    tips = np.vstack([np.zeros(3), length * corners @ np.linalg.inv(camera.K).T])
    share = np.linspace(0, 1, steps)[:, None]
    lines = [tips[a] + share * (tips[b] - tips[a]) for a, b in EDGES]
    return transform_points(camera.world_from_cam, np.concatenate(lines))
