"""A small textured scene, ray-cast in plain numpy, so that tests know the pose and the depth of every pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dune_cli.geometry import cameras, poses
from dune_cli.geometry.camera_models import Camera
from support.shared import shared_file

TEXELS_A_METRE = 80


@lru_cache(maxsize=64)
def texture(seed: int, face: int, size: int = 1024) -> np.ndarray:
    """(size, size, 3) colours in [0, 255]: blobs of every scale down to two texels; wider than the widest face."""
    rng = np.random.default_rng([seed, face])
    image = np.zeros((size, size, 3), np.float32)
    for cells in (8, 16, 32, 64, 128, 256, 512):
        coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32)
        image += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 45 * image / image.std(), 0, 255)


def rectangles() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(corner, side, side) in the world of camera 0: a wall, a floor, a slanted board and two boxes' visible faces."""
    faces = [
        ([-6, -4, 7], [12, 0, 0], [0, 6, 0]),  # wall
        ([-6, 1.4, 1], [12, 0, 0], [0, 0, 6]),  # floor
        ([-3.2, -1.5, 6.5], [2.2, 0, -1.5], [0, 2.6, 0]),  # slanted board
    ]
    for x, y, z, w, h, d in ((0.3, 0.2, 4.0, 1.2, 1.2, 1.0), (-1.2, 0.7, 3.2, 0.9, 0.7, 0.8)):
        faces += [
            ([x, y, z], [w, 0, 0], [0, h, 0]),  # front
            ([x, y, z], [w, 0, 0], [0, 0, d]),  # top
            ([x, y, z], [0, 0, d], [0, h, 0]),  # left
            ([x + w, y, z], [0, 0, d], [0, h, 0]),  # right
        ]
    return [tuple(np.array(v, dtype=np.float64) for v in face) for face in faces]


def render(
    K: np.ndarray, world_from_cam: np.ndarray, width: int, height: int, seed: int = 0, samples: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """The photo (H, W, 3) uint8, averaged over samples x samples rays a pixel, and depth z (H, W) at pixel centres.

    Rendered once a test run.
    """
    arguments = np.concatenate([np.ravel(K), np.ravel(world_from_cam), [width, height, seed, samples]]).astype(float)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **_render(K, world_from_cam, width, height, seed, samples))

    with np.load(shared_file(f"{hashlib.sha256(arguments.tobytes()).hexdigest()[:24]}.npz", write)) as arrays:
        return arrays["rgb"], arrays["depth"]


def _render(
    K: np.ndarray, world_from_cam: np.ndarray, width: int, height: int, seed: int, samples: int
) -> dict[str, np.ndarray]:
    colour, grid = np.zeros((height, width, 3)), cameras.pixel_grid(height, width)
    for dy in range(samples):
        for dx in range(samples):
            shift = (np.array([dx, dy]) + 0.5) / samples - 0.5
            found, depth = _cast(K, world_from_cam, grid + shift, seed)
            colour += found
    if samples > 1:
        depth = _cast(K, world_from_cam, grid, seed)[1]
    return {"rgb": np.rint(colour / samples**2).astype(np.uint8), "depth": depth}


def render_lens(camera: Camera, world_from_cam: np.ndarray, seed: int = 0, samples: int = 2) -> np.ndarray:
    """The photo (H, W, 3) uint8 that a camera with a lens takes; black where nothing is. Rendered once a test run."""
    words = [camera.model, camera.params, camera.width, camera.height, np.ravel(world_from_cam).tolist(), seed, samples]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, seen(camera, world_from_cam, samples, lambda rays, origin: _hit(rays, origin, seed)[0]))

    return np.load(shared_file(f"{hashlib.sha256(repr(words).encode()).hexdigest()[:24]}.npy", write))


def seen(
    camera: Camera, world_from_cam: np.ndarray, samples: int, colours: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """(H, W, 3) uint8 of a camera of any model; `colours` (H, W, 3) of rays (H, W, 3) from an origin (3,)."""
    total, grid = np.zeros((camera.height, camera.width, 3)), cameras.pixel_grid(camera.height, camera.width)
    for dy in range(samples):
        for dx in range(samples):
            shift = (np.array([dx, dy]) + 0.5) / samples - 0.5
            rays = camera.unproject(grid + shift) @ world_from_cam[:3, :3].T
            total += colours(rays, world_from_cam[:3, 3])
    return np.rint(total / samples**2).astype(np.uint8)


def _cast(K: np.ndarray, world_from_cam: np.ndarray, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rays = cameras.backproject(pixels, np.ones(pixels.shape[:2]), K) @ world_from_cam[:3, :3].T
    return _hit(rays, world_from_cam[:3, 3], seed)


def _hit(rays: np.ndarray, origin: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What `rays` (H, W, 3) from `origin` meet: colours (H, W, 3), and the factors on the rays (H, W), NaN for none."""
    depth, colour = np.full(rays.shape[:2], np.inf), np.zeros(rays.shape)
    for face, (corner, u, v) in enumerate(rectangles()):
        image = texture(seed, face)
        normal = np.cross(u, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = ((corner - origin) @ normal) / (rays @ normal)
            at = origin + rays * z[..., None] - corner
            a, b = at @ u / (u @ u), at @ v / (v @ v)
            hit = (z > 1e-6) & (z < depth) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)
        texel = np.stack([a * np.linalg.norm(u), b * np.linalg.norm(v)], -1)[hit] * TEXELS_A_METRE
        depth[hit], colour[hit] = z[hit], _bilinear(image, texel)
    return colour, np.where(np.isfinite(depth), depth, np.nan)


def _bilinear(image: np.ndarray, texel: np.ndarray) -> np.ndarray:
    low = np.floor(texel).astype(int)
    x, y = np.moveaxis((texel - low)[..., None], -2, 0)
    x0, y0 = np.moveaxis(low % len(image), -1, 0)
    x1, y1 = (x0 + 1) % len(image), (y0 + 1) % len(image)
    above, below = (image[row, x0] * (1 - x) + image[row, x1] * x for row in (y0, y1))
    return above * (1 - y) + below * y


def pose(rotvec: tuple[float, float, float], centre: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) `world_from_cam`."""
    return poses.from_rotation_translation(poses.rotation_from_rotvec(np.array(rotvec)), np.array(centre))


def visible_in(depth: np.ndarray, other_depth: np.ndarray, K: np.ndarray, other_from_cam: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels whose point lies inside the other photo and is not hidden there (5 %)."""
    height, width = depth.shape
    points = poses.transform_points(other_from_cam, cameras.backproject(cameras.pixel_grid(height, width), depth, K))
    pixels = np.rint(np.nan_to_num(cameras.project(points, K), nan=-1)).astype(int)
    x, y = pixels[..., 0], pixels[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (points[..., 2] > 0)
    seen = other_depth[np.where(inside, y, 0), np.where(inside, x, 0)]
    with np.errstate(invalid="ignore"):
        return inside & (np.abs(seen / points[..., 2] - 1) < 0.05)
