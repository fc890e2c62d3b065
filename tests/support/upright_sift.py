"""SIFT without its orientations: a matcher that takes photos upright only, as learned ones do."""

from __future__ import annotations

import cv2
import numpy as np

from dune_cli.matchers.sift import Sift


class UprightSift(Sift):
    """Counts how often a photo is looked at."""

    rotation_invariant = False

    def __init__(self, working_size_px: int = 320, max_keypoints: int = 1500) -> None:
        super().__init__(working_size_px, max_keypoints)
        self.extracted = 0

    def extract(self, rgb: np.ndarray):
        self.extracted += 1
        return super().extract(rgb)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        places = {(round(k.pt[0], 2), round(k.pt[1], 2), round(k.size, 1)): k for k in self._sift.detect(grey, None)}
        for keypoint in places.values():
            keypoint.angle = 0
        keypoints, descriptors = self._sift.compute(grey, list(places.values()))
        root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
        return cv2.KeyPoint.convert(keypoints).astype(np.float64), root
