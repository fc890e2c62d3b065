"""A photo and the same photo seen through a known homography, what every matcher is measured on, or through a lens."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, project
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import Matcher

SHIFT = np.array([[1, 0, -7.3], [0, 1, 4.6], [0, 0, 1]])
ENLARGED = np.array([[1.3, 0, -59.85], [0, 1.3, -49.85], [0, 0, 1]])  # pixel centres: x' = (x + 0.5) * 1.3 - 0.5 - 60
TILTED = np.array([[0.95, 0.06, 12], [-0.05, 0.97, 15], [6e-5, -4e-5, 1]])


def astronaut() -> np.ndarray:
    return read_photo(Path(__file__).parents[2] / "examples" / "photos" / "astronaut.png").rgb


def warped(rgb: np.ndarray, lens: Camera, K: np.ndarray) -> np.ndarray:
    """The photo (H, W, 3) of a pinhole camera K as a `lens` along the same axis takes it."""
    pixels = project(lens.unproject(pixel_grid(lens.height, lens.width)), K).astype(np.float32)
    return cv2.remap(rgb, pixels[..., 0], pixels[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def errors_px(matcher: Matcher, homography: np.ndarray) -> np.ndarray:
    """(M, 2) where the matches of the second photo lie minus where they should."""
    rgb = astronaut()
    found = matcher.match(rgb, cv2.warpPerspective(rgb, homography, (480, 448), flags=cv2.INTER_CUBIC))
    assert found.points1.dtype == found.points2.dtype == np.float64
    assert found.points1.shape == found.points2.shape == (len(found.scores), 2)
    assert found.scores.dtype == np.float32
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1
    assert len(found.scores) <= min(found.keypoints1, found.keypoints2)
    there = np.column_stack([found.points1, np.ones(len(found.points1))]) @ homography.T
    return found.points2 - there[:, :2] / there[:, 2:]


def check(errors: np.ndarray, at_least: int, median_px: float, bias_px: float) -> None:
    """Enough matches, nearly all right, a small median error, and no common offset."""
    distance = np.linalg.norm(errors, axis=1)
    assert len(errors) >= at_least
    assert (distance < 4).mean() > 0.95
    assert np.median(distance) < median_px
    assert np.abs(errors[distance < 4].mean(axis=0)).max() < bias_px
