"""Corners of black squares: exact on small pictures, whatever is inside; left alone where there are no edges."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dune_cli.sfm.marker_corners import refine_corners

SIDE, FINER = 72, 8


def picture(corners: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) of a black square with white cells inside, as a sensor averages light over its pixels."""
    y, x = np.mgrid[: SIDE * FINER, : SIDE * FINER]
    pixels = (np.stack([x, y], axis=-1) + 0.5) / FINER - 0.5
    unit = np.float32([[0, 0], [6, 0], [6, 6], [0, 6]])
    cells = cv2.perspectiveTransform(
        pixels.reshape(1, -1, 2).astype(np.float32), cv2.getPerspectiveTransform(corners.astype(np.float32), unit)
    ).reshape(*x.shape, 2)
    inside = ((cells > 0) & (cells < 6)).all(-1)
    bits = np.random.default_rng(0).random((6, 6)) < 0.5
    bits[[0, -1]] = bits[:, [0, -1]] = False
    index = np.clip(cells.astype(int), 0, 5)
    light = np.where(inside & ~bits[index[..., 1], index[..., 0]], 20.0, 230.0)
    light = light.reshape(SIDE, FINER, SIDE, FINER).mean(axis=(1, 3))
    noise = np.random.default_rng(1).normal(size=light.shape)
    return np.clip(cv2.GaussianBlur(light, (0, 0), 0.6) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("edge", "turn_deg"), [(26, 4), (40, 31), (26, 47)])
def test_corners_are_found_where_they_are(edge: float, turn_deg: float) -> None:
    turn = np.radians(turn_deg)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    square = edge / 2 * np.array([[-1, -1], [1, -1.1], [1, 1], [-1.05, 1]]) @ turned.T + (35.3, 36.6)
    middle = square.mean(axis=0)
    inwards = square + 0.4 * (middle - square) / np.linalg.norm(square - middle, axis=1, keepdims=True)
    gray = picture(square)
    for start in (inwards, inwards[::-1]):
        found = refine_corners(gray, start)
        off = np.linalg.norm(found - (square if start is inwards else square[::-1]), axis=1)
        assert off.max() < 0.06


def test_corners_without_edges_stay() -> None:
    square = np.array([[20.0, 20], [50, 20], [50, 50], [20, 50]])
    np.testing.assert_array_equal(refine_corners(np.full((SIDE, SIDE), 90, np.uint8), square), square)
    np.testing.assert_array_equal(refine_corners(255 - picture(square), square), square)  # white on black
    small = square / 10
    np.testing.assert_array_equal(refine_corners(picture(small), small), small)
