"""SIFT (Lowe 2004) with RootSIFT descriptors (Arandjelovic and Zisserman 2012), ratio and mutual test. No weights."""

from __future__ import annotations

from copy import copy

import numpy as np

from dune_cli.matchers.matcher import Availability, FeatureMatcher, Features, Matcher, resize
from dune_cli.matchers.two_nearest import two_nearest
from dune_cli.provenance import Source

NAME = "sift"
MEASURED_AUC10 = 0.38
MEASURED_SECONDS = 0.18
TAKES_MODEL = False


class Sift(FeatureMatcher):
    """OpenCV's SIFT. Small photos are enlarged to the working size, which gives several times as many keypoints in
    several times the time, unless it works `at_own_size`."""

    name = NAME
    rotation_invariant = True
    one_thread = True
    largest_first = True
    revision = 2

    def __init__(
        self,
        working_size_px: int = 1024,
        max_keypoints: int = 8192,
        contrast_threshold: float = 0.01,
        ratio: float = 0.85,
    ) -> None:
        import cv2

        self.working_size_px = working_size_px
        self.ratio = ratio
        self.enlarges = True
        self.source = Source("OpenCV SIFT", licence="Apache-2.0")
        # without precise upscaling OpenCV's keypoints lie 0.25 px too far to the right and below
        self._sift = cv2.SIFT_create(max_keypoints, contrastThreshold=contrast_threshold, enable_precise_upscale=True)

    def at_own_size(self) -> Sift:
        """The matcher that enlarges no photo, as COLMAP's does: SIFT itself begins at twice the size."""
        matcher = copy(self)
        matcher.enlarges = False
        matcher.source = Source(f"{self.source.name} at the photo's size", licence=self.source.licence)
        return matcher

    def extract(self, rgb: np.ndarray) -> Features:
        size_px = self.working_size_px if self.enlarges else min(self.working_size_px, max(rgb.shape[:2]))
        photo = resize(rgb, size_px)
        return Features(photo, *self._detect(photo.rgb))

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        keypoints, descriptors = self._sift.detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
        if not keypoints:
            return np.zeros((0, 2)), np.zeros((0, 128), dtype=np.float32)
        root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
        order = np.argsort([-keypoint.size for keypoint in keypoints], kind="stable")
        return cv2.KeyPoint.convert(keypoints).astype(np.float64)[order], root[order]

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        to2, ratio1 = two_nearest(features1.descriptors, features2.descriptors, self.pairs_ahead)
        index1 = np.flatnonzero(ratio1 < self.ratio)  # only these are matched back
        index2, row = np.unique(to2[index1], return_inverse=True)
        to1, ratio2 = two_nearest(features2.descriptors[index2], features1.descriptors, self.pairs_ahead)
        ratio = np.maximum(ratio1[index1], ratio2[row])
        keep = (to1[row] == index1) & (ratio < self.ratio)
        return index1[keep], to2[index1[keep]], 1 - ratio[keep]


def availability() -> Availability:
    """Always ready: OpenCV is a dependency."""
    return Availability(ready=True)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Sift:
    return Sift()


def build_for_many() -> Matcher:
    """The first matcher of more than two photos."""
    matcher = build("auto", "auto", None, None).at_own_size()
    matcher.reload = build_for_many
    return matcher
