"""Two views of one photo under a random homography and photometric noise: exact correspondences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.matchers.base import resize

SCALE = 3.0  # between the views, at most
TURN_DEG = 45.0  # beyond it, XFeat's descriptors no longer say anything: recall 0 at half a turn
TILT = 0.35  # perspective: how much the homogeneous scale changes across the photo, at most
SIZES = 0.45, 0.9  # of the matcher's size, between which the views' sizes are drawn


@dataclass(frozen=True)
class WarpedPair:
    """rgb0, rgb1 (h, w, 3) uint8, sides multiples of 32; H (3, 3) takes pixels of 0 to pixels of 1, centres at
    integers; seen1 (h, w) bool: where image 1 shows the photo."""

    rgb0: np.ndarray
    rgb1: np.ndarray
    H: np.ndarray
    seen1: np.ndarray


def warped_pair(rgb: np.ndarray, size_px: int, rng: np.random.Generator) -> WarpedPair:
    """A pair out of a photo (H, W, 3) uint8; all that is random is drawn from `rng`."""
    import cv2

    side = size_px * rng.uniform(*SIZES)
    rgb0 = resize(rgb, max(32, round(side)), 32).rgb
    height, width = rgb0.shape[:2]
    H = random_homography((width, height), rng)
    rgb1 = cv2.warpPerspective(rgb0, H, (width, height), flags=cv2.INTER_CUBIC)
    seen1 = cv2.warpPerspective(np.full((height, width), 255, np.uint8), H, (width, height)) == 255
    seen1 = cv2.erode(seen1.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=1).astype(bool)
    background = rng.integers(0, 256, 3).astype(np.uint8)
    rgb1 = np.where(seen1[..., None], rgb1, background)
    return WarpedPair(noisy(rgb0, rng), noisy(rgb1, rng), H, seen1)


def random_homography(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Turn, scale, shear, perspective and shift about the centre of an image of `size` (width, height)."""
    centre = (np.array(size, dtype=np.float64) - 1) / 2
    half = max(size) / 2
    turn = np.radians(rng.triangular(-TURN_DEG, 0, TURN_DEG))
    scale = SCALE ** rng.triangular(-1, 0, 1)
    squeeze = np.diag(2.0 ** (rng.uniform(-0.5, 0.5) * np.array([1, -1])))
    axis = rng.uniform(0, np.pi)
    A = scale * _turned(turn) @ _turned(axis) @ squeeze @ _turned(-axis)
    H = np.eye(3)
    H[:2, :2] = A
    H[2, :2] = rng.uniform(-TILT, TILT, 2) / half
    shift = rng.uniform(-0.5, 0.5, 2) * half * min(1.0, max(scale, 0.5))
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = -centre, centre + shift
    H = back @ H @ to
    return H / H[2, 2]


def apply(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through H; not finite where they fall behind the horizon."""
    moved = np.concatenate([points, np.ones((len(points), 1))], 1) @ H.T
    scale = np.where(moved[:, 2] * H[2, 2] > 1e-6, moved[:, 2], np.nan)
    return moved[:, :2] / scale[:, None]


def noisy(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, gamma, colour cast, blur, grain and JPEG, each now and then."""
    import cv2

    values = rgb.astype(np.float32) / 255
    values = np.clip((values - 0.5) * rng.uniform(0.6, 1.4) + 0.5 + rng.uniform(-0.2, 0.2), 0, 1)
    values = values ** np.float32(2 ** rng.uniform(-0.7, 0.7)) * rng.uniform(0.85, 1, 3).astype(np.float32)
    if rng.random() < 0.3:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.5, 2.0))
    if rng.random() < 0.5:
        values = values + rng.normal(0, rng.uniform(0.005, 0.04), values.shape).astype(np.float32)
    out = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(30, 90))
        out = cv2.imdecode(cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return out


def _turned(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])
