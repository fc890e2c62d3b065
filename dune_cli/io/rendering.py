"""A z-buffer rasteriser for triangle meshes in numpy, without OpenGL; mesh overlays on photos and views from above.

At pixel (x, y), the barycentric weights of a triangle with homogeneous corners h0, h1, h2 (pixels times depth, depth)
solve [h0 h1 h2] w = (x, y, 1). They are linear in the pixel, correct in perspective, and all non-negative exactly where
the triangle is in front of the camera, so that no clipping is needed (Olano and Greer, "Triangle scan conversion using
2D homogeneous coordinates", 1997).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import backproject
from dune_cli.io.meshes import Mesh

NEAR = 1e-3
EDGE_PX = 1e-7  # pixels on an edge belong to the triangles on both sides, so that rounding opens no gap
FLAT = 1e-11  # relative volume of triangles seen edge-on or without area
CHUNK = 2_000_000  # candidate pixels held at a time
# Okabe and Ito's palette, which colour-blind readers can tell apart, without black and grey.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))
AMBIENT = 0.35
LIGHT_CAM = np.array([-0.3, -0.5, -0.8]) / np.linalg.norm([-0.3, -0.5, -0.8])  # from the surface to the light
FINE_PIXELS = 4_000_000  # photos up to this size get two samples a pixel and direction, so that outlines are smooth
BAND_PIXELS = 1_000_000  # photo pixels painted at a time
GRID_LINES = 10
PAPER, LINE, TEXT = (250, 250, 248), (208, 208, 204), (90, 90, 88)


@dataclass(frozen=True)
class Raster:
    """The visible surface at each pixel of a view.

    `depth` (H, W) float32, infinite without a surface; `face_index` (H, W) int32, -1 there; `barycentric` (H, W, 3)
    float32, the weights of the face's corners at the surface point in space, 0 there.
    """

    depth: np.ndarray
    face_index: np.ndarray
    barycentric: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(H, W) bool: where there is a surface."""
        return self.face_index >= 0

    def interpolate(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values (V, C) of vertices at the covered pixels, row by row: (covered pixels, C)."""
        corners = values[faces[self.face_index[self.covered]]]
        return np.einsum("nk,nkc->nc", self.barycentric[self.covered], corners)


def rasterise(
    vertices_cam: np.ndarray, faces: np.ndarray, K: np.ndarray, width: int, height: int, near: float = NEAR
) -> Raster:
    """The nearest surface at every pixel of a pinhole camera.

    `vertices_cam` (V, 3) in OpenCV camera axes, `faces` (F, 3) visible from both sides, `K` (3, 3). Surface nearer than
    `near` (same unit as the vertices) or behind the camera is not drawn; triangles may cross that plane.
    """
    vertices = np.asarray(vertices_cam, np.float64)
    return _draw(vertices @ np.asarray(K, np.float64).T, vertices[:, 2], faces, width, height, near)


def rasterise_parallel(points_px: np.ndarray, depth: np.ndarray, faces: np.ndarray, width: int, height: int) -> Raster:
    """The nearest surface in a parallel projection: `points_px` (V, 2) in pixels, `depth` (V,), less is nearer."""
    homogeneous = np.concatenate([points_px, np.ones((len(points_px), 1))], 1, dtype=np.float64)
    return _draw(homogeneous, np.asarray(depth, np.float64), faces, width, height, -np.inf)


def _draw(
    homogeneous: np.ndarray, depth: np.ndarray, faces: np.ndarray, width: int, height: int, near: float
) -> Raster:
    best = np.full(height * width, np.inf)
    face_index = np.full(height * width, -1, np.int32)
    barycentric = np.zeros((height * width, 3), np.float32)
    faces = np.asarray(faces)
    low, high = _rectangles(homogeneous[faces], width, height)
    ahead = (homogeneous[faces, 2] > 0).any(1) & (depth[faces] >= near).any(1)
    shown = np.flatnonzero(ahead & (high >= low).all(1))
    corners, corner_depth, low, high = homogeneous[faces[shown]], depth[faces[shown]], low[shown], high[shown]
    corners[..., :2] -= corners[..., 2:] * low[:, None]  # small numbers keep small triangles exact
    edges = np.stack([np.cross(corners[:, k - 2], corners[:, k - 1]) for k in range(3)], 1)
    volume = np.einsum("fc,fc->f", corners[:, 0], edges[:, 0])
    flat = np.abs(volume) <= FLAT * np.linalg.norm(corners, axis=2).prod(1)
    edges /= np.where(flat, 1, volume)[:, None, None]
    high[flat] = low[flat] - 1
    for face, x, y in _pixels(edges, high - low + 1):
        shares = np.stack([edges[face, k, 0] * x + edges[face, k, 1] * y + edges[face, k, 2] for k in range(3)], 1)
        np.maximum(shares, 0, out=shares)
        shares /= shares.sum(1, keepdims=True)
        at = np.einsum("nk,nk->n", shares, corner_depth[face])
        pixel = (y + low[face, 1]) * width + x + low[face, 0]
        nearer = (at >= near) & (at < best[pixel])
        pixel, at, face, shares = pixel[nearer], at[nearer], face[nearer], shares[nearer]
        np.minimum.at(best, pixel, at)
        wins = at == best[pixel]
        face_index[pixel[wins]] = shown[face[wins]]
        barycentric[pixel[wins]] = shares[wins]
    return Raster(
        best.astype(np.float32).reshape(height, width),
        face_index.reshape(height, width),
        barycentric.reshape(height, width, 3),
    )


def _rectangles(corners: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last pixel, (F, 2) x and y, of each triangle's bounding box in the image; last < first if
    outside. The box of a triangle that reaches behind the camera is the image.
    """
    in_front = (corners[..., 2] > 0).all(1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pixels = corners[..., :2] / corners[..., 2:]
    size = np.array([width, height])
    low = np.where(in_front, np.ceil(pixels.min(1) - EDGE_PX), 0)
    high = np.where(in_front, np.floor(pixels.max(1) + EDGE_PX), size - 1)
    return np.clip(low, 0, size).astype(np.int64), np.clip(high, -1, size - 1).astype(np.int64)


def _pixels(edges: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every (triangle, column, row) in the triangles' boxes of `sizes` (F, 2) whose centre lies inside, in chunks.

    `edges` (F, 3, 3): the weight of corner k is edges[:, k] . (column, row, 1). In a row, all three are non-negative
    between two columns.
    """
    face = np.repeat(np.arange(len(edges)), sizes[:, 1])
    row = _count_up(sizes[:, 1])
    left, right = np.zeros(len(face)), sizes[face, 0] - 1.0
    slack = EDGE_PX * np.hypot(edges[..., 0], edges[..., 1])
    for k in range(3):
        slope, rest = edges[face, k, 0], edges[face, k, 1] * row + edges[face, k, 2] + slack[face, k]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            zero = -rest / slope
        left = np.where(slope > 0, np.maximum(left, zero), left)
        right = np.where(slope < 0, np.minimum(right, zero), right)
        right[(slope == 0) & (rest < 0)] = -np.inf
    left, right = np.ceil(left), np.floor(right)
    filled = right >= left
    face, row, left, right = face[filled], row[filled], left[filled].astype(np.int64), right[filled].astype(np.int64)
    lengths = right - left + 1
    for part in np.split(np.arange(len(face)), np.flatnonzero(np.diff(np.cumsum(lengths) // CHUNK)) + 1):
        line = np.repeat(part, lengths[part])
        yield face[line], left[line] + _count_up(lengths[part]), row[line]


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0 … n-1 for every n in `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def distinct_color(index: int) -> tuple[int, int, int]:
    """RGB of the index-th mesh: the palette, then hues by the golden ratio with varying saturation and value."""
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.5, 0.9)[index % 2], (0.95, 0.75, 0.55)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals: the mean of the triangles', weighted by area; 0 at vertices without triangles."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(normals[:, k], 3), minlength=len(vertices)) for k in range(3)], 1
    )
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)


def shaded(mesh: Mesh) -> Mesh:
    """The mesh with its colours under a light behind the camera, for viewers that show them without a light."""
    if mesh.colors is None:
        return mesh
    light = np.abs(vertex_normals(mesh.vertices, mesh.faces) @ LIGHT_CAM)
    colors = mesh.colors * (AMBIENT + (1 - AMBIENT) * light[:, None])
    return replace(mesh, colors=np.rint(colors).astype(np.uint8))


def shade(raster: Raster, normals: np.ndarray, colors: np.ndarray, faces: np.ndarray, light: np.ndarray) -> np.ndarray:
    """RGB (covered pixels, 3) float in 0-255 of diffuse surfaces; `light` (3,) is a unit vector towards the light.

    `normals` (V, 3), `colors` (V, 3). Both sides of a triangle are lit alike.
    """
    normal = raster.interpolate(normals, faces)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return raster.interpolate(colors, faces) * (AMBIENT + (1 - AMBIENT) * np.abs(normal @ light))[:, None]


def overlay(
    rgb: np.ndarray, meshes: Sequence[Mesh], K: np.ndarray, alpha: float = 0.7, lens: Camera | None = None
) -> np.ndarray:
    """The photo `rgb` (H, W, 3) uint8 with meshes drawn over it by the camera K (3, 3), or by its `lens`, as a new
    image.

    The nearest surface is blended with the photo by `alpha`. A mesh without colours gets the `distinct_color` of its
    index.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"a photo is (H, W, 3) uint8, received {rgb.shape} {rgb.dtype}")
    picture = rgb.copy()
    vertices, faces, colors = _merged(meshes)
    normals = vertex_normals(vertices, faces)
    if lens is not None:
        vertices, faces, K = _bent(vertices, faces, lens)
    fine = 2 if rgb.shape[0] * rgb.shape[1] <= FINE_PIXELS else 1
    centre = (fine - 1) / 2
    left, top, right, bottom = _window(vertices, np.asarray(K), *rgb.shape[1::-1])
    width, rows = right - left, max(1, BAND_PIXELS // max(1, right - left))
    for first in range(top, bottom, rows):
        band = picture[first : min(first + rows, bottom), left:right]
        fine_from_photo = np.array([[fine, 0, centre - fine * left], [0, fine, centre - fine * first], [0, 0, 1]])
        raster = rasterise(vertices, faces, fine_from_photo @ K, fine * width, fine * len(band))
        layer = np.zeros((fine * len(band), fine * width, 4), np.float32)
        layer[raster.covered, :3] = shade(raster, normals, colors, faces, LIGHT_CAM)
        layer[..., 3] = raster.covered
        layer = (alpha / fine**2) * sum(layer[y::fine, x::fine] for y in range(fine) for x in range(fine))
        band[:] = np.rint(band * (1 - layer[..., 3:]) + layer[..., :3]).clip(0, 255).astype(np.uint8)
    return picture


def _bent(vertices: np.ndarray, faces: np.ndarray, lens: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mesh where a pinhole camera, returned as well, has every vertex at the pixel of the `lens`, as far away;
    without the triangles that the lens does not see. Their sides are straight: bodies have small ones."""
    pixels = lens.project(vertices)
    seen = np.isfinite(pixels).all(-1)
    away = np.linalg.norm(vertices, axis=-1, keepdims=True)
    K = np.array([[1.0, 0, (lens.width - 1) / 2], [0, 1, (lens.height - 1) / 2], [0, 0, 1]])
    bent = backproject(np.where(seen[:, None], pixels, K[:2, 2]), np.where(seen, away[:, 0], 2 * NEAR), K)
    return bent, faces[seen[faces].all(-1)], K


def _window(vertices: np.ndarray, K: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (the last two exclusive) of the part of the image that the vertices may cover."""
    if not len(vertices):
        return 0, 0, 0, 0
    if vertices[:, 2].min() < NEAR:
        return 0, 0, width, height
    pixels = vertices @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low = np.clip(np.floor(pixels.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, low, (width, height)).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


@dataclass(frozen=True)
class TopView:
    """An image (H, W, 3) uint8 from above: a point at x, z is at pixel camera_px + pixels_per_unit * (x, -z)."""

    image: np.ndarray
    pixels_per_unit: float
    camera_px: tuple[float, float]


def top_view(
    meshes: Sequence[Mesh], size_px: int = 800, K: np.ndarray | None = None, width: int = 0, unit: str = "m"
) -> TopView:
    """Meshes in camera axes from above, on a labelled grid: x to the right, z (away from the camera) up.

    The camera is the dot at (0, 0). With K and the photo's `width` in pixels its field of view is drawn. `unit` labels
    the grid. The longer side of the image has `size_px` pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    vertices, faces, colors = _merged(meshes)
    ground = np.concatenate([vertices[np.unique(faces)][:, [0, 2]], [[0, 0]]])
    low, high = ground.min(0), ground.max(0)
    margin = 0.08 * max(*(high - low), 1)
    low, high = low - margin, high + margin
    scale = size_px / max(high - low)
    wide, tall = (math.ceil(side) for side in (high - low) * scale)
    camera = np.array([-low[0], high[1]]) * scale
    image = Image.new("RGB", (wide, tall), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, size_px // 50))

    step = _grid_step(max(high - low) / GRID_LINES)
    for line in range(math.ceil(low[0] / step), math.floor(high[0] / step) + 1):
        x = camera[0] + scale * line * step
        draw.line([(x, 0), (x, tall)], LINE)
        draw.text((x + 3, tall - 3), f"{line * step:g} {unit}", TEXT, font, anchor="ls")
    for line in range(math.ceil(low[1] / step), math.floor(high[1] / step) + 1):
        y = camera[1] - scale * line * step
        draw.line([(0, y), (wide, y)], LINE)
        if line:
            draw.text((3, y - 3), f"{line * step:g} {unit}", TEXT, font, anchor="ls")
    if K is not None:
        for column in (-0.5, width - 0.5):
            away = high[1] * np.array([(column - K[0, 2]) / K[0, 0], 1])
            draw.line([tuple(camera), tuple(camera + scale * away * [1, -1])], TEXT)
    draw.circle(tuple(camera), max(3, size_px // 160), TEXT)

    picture = np.asarray(image).copy()
    points_px = camera + scale * vertices[:, [0, 2]] * [1, -1]
    raster = rasterise_parallel(points_px, vertices[:, 1], faces, wide, tall)
    above = np.array([0.0, -1.0, 0.0])
    painted = shade(raster, vertex_normals(vertices, faces), colors, faces, above)
    picture[raster.covered] = np.rint(painted).clip(0, 255).astype(np.uint8)
    return TopView(picture, float(scale), (float(camera[0]), float(camera[1])))


def _grid_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)


def _merged(meshes: Sequence[Mesh]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All meshes as one: vertices (V, 3) and colours (V, 3) float64, faces (F, 3) int64. No trimesh here, whose import
    takes longer than the drawing."""
    vertices, faces, colors, first = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], [np.zeros((0, 3))], 0
    for index, mesh in enumerate(meshes):
        plain = np.broadcast_to(distinct_color(index), mesh.vertices.shape)
        vertices.append(mesh.vertices)
        faces.append(mesh.faces.astype(np.int64) + first)
        colors.append(plain if mesh.colors is None else mesh.colors)
        first += len(mesh.vertices)
    return np.concatenate(vertices, dtype=np.float64), np.concatenate(faces), np.concatenate(colors, dtype=np.float64)
