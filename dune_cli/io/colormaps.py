"""Colours for numbers: OpenCV's tables."""

from __future__ import annotations

import numpy as np

COLORMAPS = ("turbo", "inferno", "magma", "viridis", "grey")


def apply_colormap(share: np.ndarray, colormap: str = "turbo") -> np.ndarray:
    """(N, 3) uint8 RGB of values (N,) from 0 to 1; values outside are clipped. `colormap` is one of COLORMAPS."""
    grey = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    if colormap == "grey":
        return np.repeat(grey[:, None], 3, 1)
    import cv2

    table = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    return cv2.applyColorMap(grey[:, None], table)[:, 0, ::-1]


def between_percentiles(values: np.ndarray, low: float = 2, high: float = 98) -> np.ndarray:
    """The values (N,) shifted and scaled so that these percentiles are 0 and 1; 0.5 where all are equal."""
    first, last = np.percentile(values, [low, high])
    return (values - first) / (last - first) if last > first else np.full(len(values), 0.5)
