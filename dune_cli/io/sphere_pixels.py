"""Panoramas of the whole sphere told by their pixels, where no tag tells them (editors and messengers drop XMP)."""

from __future__ import annotations

import numpy as np

HEIGHT = 256  # rows that are looked at
LOOKED_AT_PX = 2 * HEIGHT
AT_POLES = 0.35  # of the other rows' standard deviation: the first and last row are a point each
AT_SEAM = 2.0  # times the difference of columns elsewhere
SMOOTH = 8.0  # rows: what is smoother says nothing (sky above, ground below)
ALIKE, LEAST_TEXTURE = 0.6, 1.5  # correlation of the first and last column, and the grey levels that it needs


def closes_around(rgb: np.ndarray) -> bool:
    """Whether the pixels (H, W, 3), W = 2 H, close around a sphere: left and right edge go on into one another, and the
    first and the last row are of one colour. False where the edges have too little texture to tell."""
    import cv2

    size = (LOOKED_AT_PX, HEIGHT)
    grey = cv2.resize(np.asarray(rgb, np.float32).mean(-1), size, interpolation=cv2.INTER_AREA).astype(np.float64)
    if grey[[0, -1]].std(axis=1).max() > AT_POLES * np.median(grey.std(axis=1)):
        return False
    seam = np.abs(grey[:, 0] - grey[:, -1]).mean()
    if seam > AT_SEAM * np.median(np.abs(np.diff(grey, axis=1)).mean(axis=0)):
        return False
    edges = grey[:, [0, -1]]
    fine = edges - cv2.GaussianBlur(edges, (1, 0), sigmaX=1e-6, sigmaY=SMOOTH)
    if fine.std(axis=0).min() < LEAST_TEXTURE:
        return False
    return bool(np.corrcoef(fine.T)[0, 1] > ALIKE)
