"""Pictures of people: meshes over the photo they were found in, and from above on a metric grid."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.io.mesh import Mesh
from dune_cli.io.raster import NEAR, Raster, rasterise, rasterise_parallel

# Okabe and Ito's palette, which colour-blind readers can tell apart, without black and grey.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))
AMBIENT = 0.35
LIGHT_CAM = np.array([-0.3, -0.5, -0.8]) / np.linalg.norm([-0.3, -0.5, -0.8])  # from the surface to the light
FINE_PIXELS = 4_000_000  # photos up to this size get two samples a pixel and direction, so that outlines are smooth
BAND_PIXELS = 1_000_000  # photo pixels painted at a time
GRID_LINES = 10
PAPER, LINE, TEXT = (250, 250, 248), (208, 208, 204), (90, 90, 88)


def distinct_color(index: int) -> tuple[int, int, int]:
    """RGB of the index-th person: the palette, then hues by the golden ratio at changing saturation and value."""
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.5, 0.9)[index % 2], (0.95, 0.75, 0.55)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, the triangles' weighted by area; 0 at vertices without triangles."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(normals[:, k], 3), minlength=len(vertices)) for k in range(3)], 1
    )
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)


def shade(raster: Raster, normals: np.ndarray, colors: np.ndarray, faces: np.ndarray, light: np.ndarray) -> np.ndarray:
    """RGB (covered pixels, 3), 0-255 float, of matt surfaces lit along `light` (3,), a unit vector towards the lamp.

    normals (V, 3); colors (V, 3). A side turned away from the lamp is lit as if it faced it: meshes have no inside.
    """
    normal = raster.interpolate(normals, faces)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return raster.interpolate(colors, faces) * (AMBIENT + (1 - AMBIENT) * np.abs(normal @ light))[:, None]


def overlay(rgb: np.ndarray, meshes: Sequence[Mesh], K: np.ndarray, alpha: float = 0.7) -> np.ndarray:
    """The photo `rgb` (H, W, 3) uint8 with meshes over it, seen by the camera K (3, 3), as a new picture.

    Meshes hide each other by depth; the nearest is blended with the photo, `alpha` its share. A mesh without colours
    gets `distinct_color` of its place in the list.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"a photo is (H, W, 3) uint8, received {rgb.shape} {rgb.dtype}")
    picture = rgb.copy()
    vertices, faces, colors = _joined(meshes)
    normals = vertex_normals(vertices, faces)
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


def _window(vertices: np.ndarray, K: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (the last two exclusive) of the part of the image that the vertices can reach."""
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
    """A picture (H, W, 3) uint8 from above: a point at x, z lies at pixel camera_px + pixels_per_unit * (x, -z)."""

    image: np.ndarray
    pixels_per_unit: float
    camera_px: tuple[float, float]


def top_view(
    meshes: Sequence[Mesh], size_px: int = 800, K: np.ndarray | None = None, width: int = 0, unit: str = "m"
) -> TopView:
    """Meshes in camera axes from above, on a grid with its distances written on it: x to the right, z (away) up.

    The camera is the dot at (0, 0); with K and the photo's `width` in pixels, its field of view is drawn too. `unit` is
    what lengths are called. The picture's longer side has `size_px` pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    vertices, faces, colors = _joined(meshes)
    spots = np.concatenate([vertices[np.unique(faces)][:, [0, 2]], [[0, 0]]])
    low, high = spots.min(0), spots.max(0)
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


def _joined(meshes: Sequence[Mesh]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All meshes as one: vertices (V, 3) and colours (V, 3) float64, faces (F, 3) int64."""
    vertices, faces, colors, first = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], [np.zeros((0, 3))], 0
    for index, mesh in enumerate(meshes):
        plain = np.broadcast_to(distinct_color(index), mesh.vertices.shape)
        vertices.append(mesh.vertices)
        faces.append(mesh.faces.astype(np.int64) + first)
        colors.append(plain if mesh.colors is None else mesh.colors)
        first += len(mesh.vertices)
    return np.concatenate(vertices, dtype=np.float64), np.concatenate(faces), np.concatenate(colors, dtype=np.float64)
