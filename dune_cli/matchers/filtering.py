"""Matches of two photos that can be evidence for a pose.

Static matches (captions, logos, a car's bonnet, a border) lie at the same pixels of both photos and show nothing of the
cameras' motion; they are left out. Distant points seen by a camera that does not rotate also lie at the same pixels,
but agree with the motion of the other matches; and where the whole photos are alike, both are one view. These are kept.

Where a matcher takes upright photos only, the quarter turn of the second photo that verifies best is used.

Pixels (M, 2) have their centres at integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log10
from typing import Any

import numpy as np

from dune_cli import optional
from dune_cli.geometry import epipolar, two_view
from dune_cli.geometry.cameras import quarter_turn, resize_transform, transform_pixels
from dune_cli.matchers.matcher import CacheableMatcher, Matcher, Matches

THUMBNAIL_PX = 256
WINDOW_PX = 13  # of the thumbnails, in which they are compared
MIN_TEXTURE = 6.0  # standard deviation of a window's grey values, out of 255
MIN_CORRELATION, MIN_STATIC_CORRELATION = 0.8, 0.9  # of windows of one view; of windows of one overlay
MIN_STATIC = 6
SAME_VIEW_SHARE = 0.5  # of the textured windows alike: then both photos are one view, without an overlay
OVERLAY_RADIUS = 0.03  # of the diagonal: a match so near a coinciding one belongs to the overlay, too
MAX_LOG10_NFA_STATIC = -2.0  # above it the coinciding matches are too few to pass for a motion
MAX_LOG10_NFA_MOTION = -4.0  # up to which the other matches show a motion
QUARTER_TURNS = 4
# above it a pair counts as not verified, and quarter turns are tried; `dune reloc` refuses such pairs
MAX_LOG10_NFA_VERIFIED = -12.0


@dataclass(frozen=True)
class Thumbnail:
    """A photo of `size` (width, height) reduced to `grey` (h, w) uint8."""

    size: tuple[int, int]
    grey: np.ndarray

    @classmethod
    def of(cls, rgb: np.ndarray) -> Thumbnail:
        """Of a photo (H, W, 3) uint8."""
        cv2 = optional.require("cv2", "comparing photos")
        height, width = rgb.shape[:2]
        scale = min(1.0, THUMBNAIL_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return cls((width, height), cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))

    @property
    def from_photo(self) -> np.ndarray:
        """(3, 3) pixels of `grey` from the photo's."""
        (width, height), (h, w) = self.size, self.grey.shape
        return resize_transform(w / width, h / height)


@dataclass(frozen=True)
class LazyThumbnail:
    """The `size` (width, height) of a photo, and a function that gives its thumbnail."""

    size: tuple[int, int]
    load: Callable[[], Thumbnail]

    @classmethod
    def of(cls, rgb: np.ndarray) -> LazyThumbnail:
        """Of a photo (H, W, 3) uint8."""
        return cls((rgb.shape[1], rgb.shape[0]), lambda: Thumbnail.of(rgb))


def non_static_matches(
    points1: np.ndarray,
    points2: np.ndarray,
    pixel_sizes_px: tuple[float, float],
    photo1: LazyThumbnail,
    photo2: LazyThumbnail,
    seed: int = 0,
) -> np.ndarray:
    """(M,) bool: the matches that can be evidence for a motion; all of them, unless an overlay is found.

    `pixel_sizes_px`: pixels of each photo per matched pixel. The thumbnails are loaded only where so many matches
    coincide that they could pass for a motion.
    """
    all_matches = np.ones(len(points1), dtype=bool)
    sizes = photo1.size, photo2.size
    tolerance_px = 1.5 * max(1.0, *pixel_sizes_px)
    transforms = _possible_overlays(*sizes)
    offsets = points2 @ np.swapaxes(transforms[:, :2, :2], 1, 2) + transforms[:, None, :2, 2] - points1
    coincide = np.linalg.norm(offsets, axis=2) < tolerance_px
    best = int(coincide.sum(axis=1).argmax())
    first_from_second, static = transforms[best], coincide[best]
    count = int(static.sum())
    if count < MIN_STATIC:
        return all_matches
    if two_view.log10_nfa_epipolar(count, len(static), pixel_sizes_px, sizes) > MAX_LOG10_NFA_STATIC:
        return all_matches
    thumbnail1, thumbnail2 = photo1.load(), photo2.load()
    region, similar_share = _overlay_region(thumbnail1, thumbnail2, first_from_second)
    if similar_share >= SAME_VIEW_SHARE:
        return all_matches
    radius_px = OVERLAY_RADIUS * float(np.hypot(*photo1.size))
    overlay = np.ones(len(points1), dtype=bool)
    for pixels in (points1, transform_pixels(first_from_second, points2)):
        in_region = _is_inside(region, transform_pixels(thumbnail1.from_photo, pixels))
        overlay &= in_region | _is_near(pixels, points1[static], radius_px)
    overlay |= static
    return ~overlay | _agreeing_with_motion(points1, points2, ~overlay, sizes, pixel_sizes_px, seed)


@lru_cache(maxsize=256)
def _possible_overlays(size1: tuple[int, int], size2: tuple[int, int]) -> np.ndarray:
    """(T, 3, 3) `first_from_second`, affine: the pixels in the first photo of an overlay in the second one, where the
    photos are rotated by quarters, or are of other sizes: scaled, or with a border or their middle in common."""
    found = []
    for turns in range(QUARTER_TURNS):
        rotation = quarter_turn(*size2, turns)
        width, height = size2 if turns % 2 == 0 else size2[::-1]
        if (width, height) == size1:
            found.append(rotation)
            continue
        found.append(resize_transform(size1[0] / width, size1[1] / height) @ rotation)
        for x in (0, (size1[0] - width) / 2, size1[0] - width):
            for y in (0, (size1[1] - height) / 2, size1[1] - height):
                found.append(np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ rotation)
    return np.stack(found)


def _overlay_region(
    thumbnail1: Thumbnail, thumbnail2: Thumbnail, first_from_second: np.ndarray
) -> tuple[np.ndarray, float]:
    """(h, w) bool, where the second photo, warped to the first, is identical; and the share of the textured windows
    that are similar."""
    cv2 = optional.require("cv2", "comparing photos")
    height, width = thumbnail1.grey.shape
    matrix = thumbnail1.from_photo @ first_from_second @ np.linalg.inv(thumbnail2.from_photo)
    warped = cv2.warpAffine(thumbnail2.grey.astype(np.float32), matrix[:2], (width, height), flags=cv2.INTER_LINEAR)
    valid = cv2.warpAffine(np.ones(thumbnail2.grey.shape, np.float32), matrix[:2], (width, height)) > 0.99
    first = thumbnail1.grey.astype(np.float32)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (WINDOW_PX, WINDOW_PX), borderType=cv2.BORDER_REFLECT)

    mean1, mean2 = mean(first), mean(warped)
    variance1, variance2 = mean(first**2) - mean1**2, mean(warped**2) - mean2**2
    product = np.sqrt(np.maximum(variance1 * variance2, 1.0))
    correlation = (mean(first * warped) - mean1 * mean2) / product
    textured = (np.maximum(variance1, variance2) > MIN_TEXTURE**2) & valid
    if not textured.any():
        return textured, 1.0
    region = (textured & (correlation > MIN_STATIC_CORRELATION)).astype(np.uint8)
    region = cv2.dilate(region, np.ones((WINDOW_PX, WINDOW_PX), np.uint8)) > 0
    return region, float((correlation[textured] > MIN_CORRELATION).mean())


def _is_inside(region: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    height, width = region.shape
    x, y = np.rint(pixels).astype(int).T
    return region[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


def _is_near(pixels: np.ndarray, others: np.ndarray, radius_px: float) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(others).query(pixels)[0] < radius_px


def _agreeing_with_motion(
    points1: np.ndarray,
    points2: np.ndarray,
    used: np.ndarray,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    pixel_sizes_px: tuple[float, float],
    seed: int,
) -> np.ndarray:
    """(M,) bool: the matches that agree with the epipolar geometry of those `used`; none where chance explains it."""
    none = np.zeros(len(points1), dtype=bool)
    F, _ = epipolar.fundamental_inliers(points1[used], points2[used], max(pixel_sizes_px), seed)
    if F is None:
        return none
    ones = np.ones((len(points1), 1))
    x1, x2 = np.hstack([points1, ones]), np.hstack([points2, ones])
    line2, line1 = x1 @ F.T, x2 @ F
    square = (line2[:, :2] ** 2).sum(1) + (line1[:, :2] ** 2).sum(1)
    agree = np.abs((x2 * line2).sum(1)) < max(pixel_sizes_px) * np.sqrt(np.maximum(square, 1e-300))
    inliers, matches = int((agree & used).sum()), int(used.sum())
    log10_nfa = two_view.log10_nfa_epipolar(inliers, matches, pixel_sizes_px, sizes)
    return agree if log10_nfa <= MAX_LOG10_NFA_MOTION else none


def non_static_mask(matches: Matches, photo1: LazyThumbnail, photo2: LazyThumbnail, seed: int = 0) -> np.ndarray:
    """(M,) bool: `non_static_matches` of matches."""
    pixel_sizes_px = matches.pixel_size1, matches.pixel_size2
    return non_static_matches(matches.points1, matches.points2, pixel_sizes_px, photo1, photo2, seed)


def without_static_matches(matches: Matches, photo1: LazyThumbnail, photo2: LazyThumbnail, seed: int = 0) -> Matches:
    """The matches without those at the same pixels of both photos that do not agree with the others' motion."""
    return matches.select(non_static_mask(matches, photo1, photo2, seed))


@dataclass(frozen=True)
class ExtractedImage:
    """A photo (H, W, 3) uint8 and its `features`; None with matchers that have none."""

    rgb: np.ndarray
    features: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def thumbnail(self) -> LazyThumbnail:
        return LazyThumbnail.of(self.rgb)


def extract_image(matcher: Matcher, rgb: np.ndarray) -> ExtractedImage:
    """A photo with its features."""
    return extract_images(matcher, [rgb])[0]


def extract_images(matcher: Matcher, photos: Sequence[np.ndarray]) -> list[ExtractedImage]:
    """A few photos with their features."""
    if not isinstance(matcher, CacheableMatcher):
        return [ExtractedImage(rgb) for rgb in photos]
    return [ExtractedImage(rgb, features) for rgb, features in zip(photos, matcher.extract_all(photos))]


def match_extracted(matcher: Matcher, image1: ExtractedImage, image2: ExtractedImage) -> Matches:
    """All matches of two photos, from their features where the matcher has them."""
    if isinstance(matcher, CacheableMatcher):
        return matcher.match_features(image1.features, image2.features)
    return matcher.match(image1.rgb, image2.rgb)


def find_matches(matcher: Matcher, image1: ExtractedImage, image2: ExtractedImage, seed: int = 0) -> Matches:
    """The matches of two photos without static ones.

    Rotated copies of the second photo are matched only where the photos as they are do not verify, and are taken only
    where they verify in spite of the number of tries.
    """
    thumbnails = image1.thumbnail, image2.thumbnail
    upright = without_static_matches(match_extracted(matcher, image1, image2), *thumbnails, seed)
    if not isinstance(matcher, CacheableMatcher) or matcher.rotation_invariant:
        return upright
    if verify_epipolar(upright, image1.size, image2.size, seed)[1] <= MAX_LOG10_NFA_VERIFIED:
        return upright
    best, most_inliers = upright, 0
    for turns in range(1, QUARTER_TURNS):
        matches = matcher.match_features(image1.features, matcher.extract_rotated(image2.rgb, turns))
        matches = without_static_matches(matches, *thumbnails, seed)
        matches = replace(matches, rotated_deg=90 * turns, tries=QUARTER_TURNS)
        inliers, log10_nfa = verify_epipolar(matches, image1.size, image2.size, seed)
        if inliers > most_inliers and log10_nfa <= MAX_LOG10_NFA_VERIFIED:
            best, most_inliers = matches, inliers
    return best


def verify_epipolar(
    matches: Matches, size1: tuple[int, int], size2: tuple[int, int], seed: int = 0
) -> tuple[int, float]:
    """How many matches agree with one epipolar geometry, and log10 of the number of such agreements to expect by
    chance, all `tries` counted. Sizes (width, height) of the photos."""
    pixel_sizes_px = matches.pixel_size1, matches.pixel_size2
    _, agree = epipolar.fundamental_inliers(matches.points1, matches.points2, max(pixel_sizes_px), seed, 5000)
    inliers = int(agree.sum())
    log10_nfa = two_view.log10_nfa_epipolar(inliers, len(agree), pixel_sizes_px, (size1, size2))
    return inliers, log10_nfa + log10(matches.tries)
