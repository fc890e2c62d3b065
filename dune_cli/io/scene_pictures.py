"""Pictures of a scene without browser or graphics card: triangles by the rasteriser, points as squares by depth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dune_cli.geometry.framing import VirtualCamera
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Frustum
from dune_cli.io.rendering import FINE_PIXELS, rasterise

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
    picture = np.empty((height * width, 3), np.uint8)
    picture[:] = background
    depth = np.full(height * width, np.inf, np.float32)
    for mesh in data.meshes:
        assert mesh.colors is not None
        raster = rasterise(transform_points(cam_from_world, mesh.vertices), mesh.faces, K, width, height, near)
        own = raster.depth.ravel()
        nearer = own < depth
        painted = raster.interpolate(mesh.colors.astype(np.float32), mesh.faces)
        picture[nearer] = np.rint(painted[nearer[raster.covered.ravel()]]).astype(np.uint8)
        depth[nearer] = own[nearer]
    canvas = _Canvas(picture, depth, width, height, K, near)
    if data.points is not None and len(data.points):
        assert data.colors is not None
        canvas.splat(transform_points(cam_from_world, data.points), data.colors, point_px, fine)
    if cameras:
        length = FRUSTUM_SHARE * near / NEAREST
        for one in data.cameras:
            lines = transform_points(cam_from_world, _outline(one, length, max(camera.width, camera.height)))
            canvas.splat(lines, np.broadcast_to(np.uint8(FRUSTUM_COLOR), lines.shape), 1, fine)
    picture = picture.reshape(height, width, 3)
    if fine == 1:
        return picture
    sums = sum(picture[y::fine, x::fine].astype(np.uint16) for y in range(fine) for x in range(fine))
    return ((sums + fine**2 // 2) // fine**2).astype(np.uint8)


def orbit(camera: VirtualCamera, frames: int, degrees: float) -> Iterator[VirtualCamera]:
    """A full turn about the pivot for 360 degrees; for less a swing to both sides and back, which ends as it began."""
    for index in range(frames):
        share = index / frames
        angle = 360 * share if degrees >= 360 else degrees / 2 * math.sin(2 * math.pi * share)
        yield camera.turned(angle, 0)


class _Canvas:
    """A picture (height * width, 3) with the depth of its pixels, drawn into."""

    def __init__(
        self, picture: np.ndarray, depth: np.ndarray, width: int, height: int, K: np.ndarray, near: float
    ) -> None:
        self.picture, self.depth, self.width, self.height, self.K, self.near = picture, depth, width, height, K, near

    def splat(self, points_cam: np.ndarray, colors: np.ndarray, point_px: int | None, fine: int) -> None:
        """Points (N, 3) as squares of `point_px` pixels times `fine`."""
        ahead = np.flatnonzero(points_cam[:, 2] >= self.near)
        image = points_cam[ahead] @ self.K.T
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = image[:, :2] / image[:, 2:]
            reach = LARGEST_POINT_PX * fine
            inside = (pixels > -reach).all(1) & (pixels < [self.width + reach, self.height + reach]).all(1)
        ahead, pixels = ahead[inside], pixels[inside]
        if not len(ahead):
            return
        if point_px is None:
            covered = COVER * self.width * self.height / fine**2 / len(ahead)
            point_px = min(max(round(math.sqrt(covered)), 1), LARGEST_POINT_PX)
        side = point_px * fine
        far_first = np.argsort(-points_cam[ahead, 2], kind="stable")
        ahead, pixels = ahead[far_first], pixels[far_first]
        depth, colors = points_cam[ahead, 2].astype(np.float32), colors[ahead]
        corner = np.rint(pixels - (side - 1) / 2).astype(np.int64)
        for dy in range(side):
            for dx in range(side):
                x, y = corner[:, 0] + dx, corner[:, 1] + dy
                shown = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
                place = y[shown] * self.width + x[shown]
                nearer = depth[shown] < self.depth[place]
                place = place[nearer]
                self.depth[place] = depth[shown][nearer]  # of several the last, which is the nearest
                self.picture[place] = colors[shown][nearer]


def _outline(camera: Frustum, length: float, steps: int) -> np.ndarray:
    """(N, 3) points in the world along the edges of a camera's pyramid, `length` deep."""
    x, y = (-0.5, camera.width - 0.5), (-0.5, camera.height - 0.5)
    corners = np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    tips = np.vstack([np.zeros(3), length * corners @ np.linalg.inv(camera.K).T])
    share = np.linspace(0, 1, steps)[:, None]
    lines = [tips[a] + share * (tips[b] - tips[a]) for a, b in EDGES]
    return transform_points(camera.world_from_cam, np.concatenate(lines))
