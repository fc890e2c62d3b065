"""Matches of what does not move in the picture: captions, logos, a car's bonnet, a border, burnt into both photos.

They lie at the same pixels of both photos and tell nothing of where the cameras were. Far points before a camera that
does not turn lie at the same pixels, too, but agree with the motion that the other matches show; and where the whole
photo is alike, both were taken from one place. Pixels (M, 2), centres at integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np

from dune_cli import optional
from dune_cli.geometry import epipolar, two_view
from dune_cli.geometry.cameras import quarter_turn, transform_pixels
from dune_cli.matchers.matcher import CacheableMatcher, Matcher, Matches

THUMBNAIL_PX = 256
WINDOW_PX = 13  # of the thumbnails, in which they are compared
TEXTURED = 6.0  # standard deviation of a window's grey values, out of 255
ALIKE, FIXED = 0.8, 0.9  # correlation of windows of one place; of windows of one overlay
MIN_FIXED = 6
SAME_VIEW_SHARE = 0.5  # of the textured windows alike: then it is no overlay but one view
NEAR_SHARE = 0.03  # of the diagonal, around a coinciding match: still the overlay
SURE = -2.0  # log10 of false alarms up to which coinciding matches cannot pass for a motion
MOTION = -4.0  # log10 of false alarms from which on the other matches show a motion


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
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cls(
            (width, height), cv2.cvtColor(cv2.resize(rgb, small, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        )

    @property
    def from_photo(self) -> np.ndarray:
        """(3, 3) pixels of `grey` from the photo's."""
        (width, height), (h, w) = self.size, self.grey.shape
        sx, sy = w / width, h / height
        return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])


def non_static_matches(
    points1: np.ndarray,
    points2: np.ndarray,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    pixel_sizes_px: tuple[float, float],
    thumbnails: Callable[[], tuple[Thumbnail, Thumbnail]],
    seed: int = 0,
) -> np.ndarray:
    """(M,) bool: the matches that may count as evidence of a motion; all of them, unless an overlay is found.

    `sizes` (width, height) of the photos; `thumbnails` is asked only where so many matches coincide that they could
    pass for a motion.
    """
    everything = np.ones(len(points1), dtype=bool)
    tolerance_px = 1.5 * max(1.0, *pixel_sizes_px)
    best, same = np.eye(3), np.zeros(len(points1), dtype=bool)
    for first_from_second in _frames(*sizes):
        apart = np.linalg.norm(transform_pixels(first_from_second, points2) - points1, axis=1)
        if np.count_nonzero(apart < tolerance_px) > np.count_nonzero(same):
            best, same = first_from_second, apart < tolerance_px
    count = int(same.sum())
    if count < MIN_FIXED or two_view.log10_nfa_epipolar(count, len(same), pixel_sizes_px, sizes) > SURE:
        return everything
    one, two = thumbnails()
    region, alike = _compare(one, two, best)
    if alike >= SAME_VIEW_SHARE:
        return everything
    radius_px = NEAR_SHARE * float(np.hypot(*sizes[0]))
    ends = (points1, transform_pixels(best, points2))
    overlay = np.ones(len(points1), dtype=bool)
    for end in ends:
        overlay &= _inside(region, transform_pixels(one.from_photo, end)) | _near(end, points1[same], radius_px)
    overlay |= same
    return ~overlay | _agreeing(points1, points2, ~overlay, sizes, pixel_sizes_px, seed)


def _frames(size1: tuple[int, int], size2: tuple[int, int]) -> Iterator[np.ndarray]:
    """`first_from_second` (3, 3): where a pixel of the second photo would be in the first if both were one frame:
    turned by quarters, of other sizes scaled, or with a border or their middle in common."""
    for turns in range(4):
        upright = quarter_turn(*size2, turns)
        width, height = size2 if turns % 2 == 0 else size2[::-1]
        if (width, height) == size1:
            yield upright
            continue
        sx, sy = size1[0] / width, size1[1] / height
        yield np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]]) @ upright
        for x in (0, (size1[0] - width) / 2, size1[0] - width):
            for y in (0, (size1[1] - height) / 2, size1[1] - height):
                yield np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ upright


def _compare(one: Thumbnail, two: Thumbnail, first_from_second: np.ndarray) -> tuple[np.ndarray, float]:
    """(h, w) bool, where the second photo, laid on the first one, is the same to the pixel; and the share of what has
    texture that is alike."""
    cv2 = optional.require("cv2", "comparing photos")
    height, width = one.grey.shape
    matrix = one.from_photo @ first_from_second @ np.linalg.inv(two.from_photo)
    laid = cv2.warpAffine(two.grey.astype(np.float32), matrix[:2], (width, height), flags=cv2.INTER_LINEAR)
    there = cv2.warpAffine(np.ones(two.grey.shape, np.float32), matrix[:2], (width, height)) > 0.99
    first = one.grey.astype(np.float32)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (WINDOW_PX, WINDOW_PX), borderType=cv2.BORDER_REFLECT)

    mean1, mean2 = mean(first), mean(laid)
    variance1, variance2 = mean(first**2) - mean1**2, mean(laid**2) - mean2**2
    product = np.sqrt(np.maximum(variance1 * variance2, 1.0))
    correlation = (mean(first * laid) - mean1 * mean2) / product
    textured = (np.maximum(variance1, variance2) > TEXTURED**2) & there
    if not textured.any():
        return textured, 1.0
    region = (textured & (correlation > FIXED)).astype(np.uint8)
    region = cv2.dilate(region, np.ones((WINDOW_PX, WINDOW_PX), np.uint8)) > 0
    return region, float((correlation[textured] > ALIKE).mean())


def _inside(region: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    height, width = region.shape
    x, y = np.rint(pixels).astype(int).T
    return region[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


def _near(pixels: np.ndarray, others: np.ndarray, radius_px: float) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(others).query(pixels)[0] < radius_px


def _agreeing(
    points1: np.ndarray,
    points2: np.ndarray,
    use: np.ndarray,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    pixel_sizes_px: tuple[float, float],
    seed: int,
) -> np.ndarray:
    """(M,) bool: the matches that agree with the epipolar geometry of those in `use`; none where chance explains it."""
    nothing = np.zeros(len(points1), dtype=bool)
    F, _ = epipolar.fundamental_inliers(points1[use], points2[use], max(pixel_sizes_px), seed)
    if F is None:
        return nothing
    ones = np.ones((len(points1), 1))
    x1, x2 = np.hstack([points1, ones]), np.hstack([points2, ones])
    line2, line1 = x1 @ F.T, x2 @ F
    square = (line2[:, :2] ** 2).sum(1) + (line1[:, :2] ** 2).sum(1)
    near = np.abs((x2 * line2).sum(1)) < max(pixel_sizes_px) * np.sqrt(np.maximum(square, 1e-300))
    inliers, matches = int((near & use).sum()), int(use.sum())
    chance = two_view.log10_nfa_epipolar(inliers, matches, pixel_sizes_px, sizes)
    return near if chance <= MOTION else nothing


# Matches of two photos that can be evidence of a pose: none of what does not move in the picture, and, where a matcher
# takes photos upright only, those of the quarter turn of the second photo with which most of them verify.


QUARTER_TURNS = 4
# log10 of the number of such agreements to expect by chance, above which a pair counts as not verified and quarter
# turns are tried; `dune reloc` refuses such pairs
MAX_LOG10_NFA_VERIFIED = -12.0


@dataclass(frozen=True)
class ExtractedImage:
    """A photo (H, W, 3) uint8 and what `SplitMatcher.extract` found in it; other matchers have no `features`."""

    rgb: np.ndarray
    features: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def extract_image(matcher: Matcher, rgb: np.ndarray) -> ExtractedImage:
    """A photo with its features."""
    return ExtractedImage(rgb, matcher.extract(rgb) if isinstance(matcher, CacheableMatcher) else None)


def find_matches(matcher: Matcher, one: ExtractedImage, two: ExtractedImage, seed: int = 0) -> Matches:
    """The matches of two photos that may count.

    Turned copies of the second photo are looked at only where the matches of both photos as they are do not verify, and
    taken only where they verify in spite of the number of tries.
    """
    if not isinstance(matcher, CacheableMatcher):
        return without_static_matches(matcher.match(one.rgb, two.rgb), one.rgb, two.rgb, seed)
    upright = without_static_matches(matcher.match_features(one.features, two.features), one.rgb, two.rgb, seed)
    if matcher.rotation_invariant or verify_epipolar(upright, one.size, two.size, seed)[1] <= MAX_LOG10_NFA_VERIFIED:
        return upright
    best, most = upright, 0
    for turns in range(1, QUARTER_TURNS):
        found = matcher.match_features(one.features, matcher.extract_rotated(two.rgb, turns))
        found = replace(
            without_static_matches(found, one.rgb, two.rgb, seed), rotated_deg=90 * turns, tries=QUARTER_TURNS
        )
        inliers, chance = verify_epipolar(found, one.size, two.size, seed)
        if inliers > most and chance <= MAX_LOG10_NFA_VERIFIED:
            best, most = found, inliers
    return best


def without_static_matches(matches: Matches, rgb1: np.ndarray, rgb2: np.ndarray, seed: int = 0) -> Matches:
    """Without what lies at the same pixels of both photos and does not agree with the rest."""
    return matches.select(non_static_mask(matches, rgb1, rgb2, seed))


def non_static_mask(matches: Matches, rgb1: np.ndarray, rgb2: np.ndarray, seed: int = 0) -> np.ndarray:
    """(M,) bool: which matches `moving_only` leaves."""
    sizes = (rgb1.shape[1], rgb1.shape[0]), (rgb2.shape[1], rgb2.shape[0])
    return non_static_matches(
        matches.points1,
        matches.points2,
        sizes,
        (matches.pixel_size1, matches.pixel_size2),
        lambda: (Thumbnail.of(rgb1), Thumbnail.of(rgb2)),
        seed,
    )


def verify_epipolar(
    matches: Matches, size1: tuple[int, int], size2: tuple[int, int], seed: int = 0
) -> tuple[int, float]:
    """How many matches agree with one epipolar geometry, and log10 of the number of such agreements to expect by
    chance, all `tries` counted."""
    sizes_px = matches.pixel_size1, matches.pixel_size2
    _, agree = epipolar.fundamental_inliers(matches.points1, matches.points2, max(sizes_px), seed, 5000)
    inliers = int(agree.sum())
    chance = two_view.log10_nfa_epipolar(inliers, len(agree), sizes_px, (size1, size2))
    return inliers, chance + log10(matches.tries)
