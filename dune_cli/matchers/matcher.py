"""The interface of matchers: two photos in, pixel correspondences with scores out, at the matcher's working size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dune_cli.geometry.cameras import quarter_turn, transform_pixels
from dune_cli.io.cache import Layout
from dune_cli.provenance import Source


@dataclass(frozen=True)
class Matches:
    """M correspondences between two photos.

    points1, points2 (M, 2) float64: pixels (x, y) of the original photos, pixel centres at integers. scores (M,)
    float32 in [0, 1]. keypoints1, keypoints2: how many keypoints (or pixels) were compared. pixel_size1, pixel_size2:
    pixels of each original photo per pixel of the matched image, the unit of a match's accuracy. rotated_deg: the
    clockwise rotation (0, 90, 180, 270) of photo 2 before it was matched; its points are those of the photo as it is.
    tries: how many such rotations were tried. static_matches: how many matches were left out because they lie at the
    same pixels of both photos (`matchers.filtering`).
    """

    points1: np.ndarray
    points2: np.ndarray
    scores: np.ndarray
    keypoints1: int
    keypoints2: int
    pixel_size1: float
    pixel_size2: float
    rotated_deg: int = 0
    tries: int = 1
    static_matches: int = 0

    def select(self, keep: np.ndarray) -> Matches:
        """The matches of `keep` (M,) bool; the others count as `static_matches`."""
        if keep.all():
            return self
        left_out = int(np.count_nonzero(~keep))
        return replace(
            self,
            points1=self.points1[keep],
            points2=self.points2[keep],
            scores=self.scores[keep],
            static_matches=self.static_matches + left_out,
        )

    def swapped(self) -> Matches:
        """The same matches, photo 2 first."""
        return replace(
            self,
            points1=self.points2,
            points2=self.points1,
            keypoints1=self.keypoints2,
            keypoints2=self.keypoints1,
            pixel_size1=self.pixel_size2,
            pixel_size2=self.pixel_size1,
        )


@dataclass(frozen=True)
class ResizedImage:
    """A photo at a matcher's working size: `rgb` (h, w, 3) uint8, and original pixels per pixel of it, (x, y).
    `quarter_turns`: how often the photo was rotated clockwise by 90 degrees before."""

    rgb: np.ndarray
    original_per_pixel: tuple[float, float]
    quarter_turns: int = 0

    @property
    def pixel_size(self) -> float:
        """Original pixels per pixel, the mean over both axes."""
        return float(np.sqrt(np.prod(self.original_per_pixel)))

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Pixels (M, 2) of `rgb` as float64 pixels of the original photo, before it was rotated."""
        rotated = (np.asarray(points, dtype=np.float64) + 0.5) * np.asarray(self.original_per_pixel) - 0.5
        if not self.quarter_turns:
            return rotated
        height, width = (
            round(side * scale) for side, scale in zip(self.rgb.shape[:2], reversed(self.original_per_pixel))
        )
        return transform_pixels(quarter_turn(width, height, -self.quarter_turns), rotated)


@dataclass(frozen=True)
class Features:
    """The keypoints of one photo: `points` (N, 2) in pixels of `photo.rgb`, and their `descriptors`, in the form that
    the matcher has them."""

    photo: ResizedImage
    points: np.ndarray
    descriptors: Any


@dataclass(frozen=True)
class Availability:
    """Whether a matcher can run here; if not, `why`, and the command that changes it."""

    ready: bool
    why: str = ""
    cure: str = ""


class Matcher(ABC):
    """Base of all matchers. `rotation_invariant`: it matches rotated photos as well as upright ones. `one_thread`: a
    call works in one thread, and several threads may call at once. `pairs_ahead`: how many pairs it is to match, as far
    as the caller knows. `reload`: loads the same matcher in another process; None where only this object is known."""

    name: str
    rotation_invariant: bool = False
    one_thread: bool = False
    pairs_ahead: int = 1
    working_size_px: int
    source: Source
    reload: Callable[[], Matcher] | None = None

    @abstractmethod
    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        """Matches of two photos (H, W, 3) uint8 at their original resolution."""

    def for_many(self) -> Matcher:
        """A quicker setting of the matcher, where each photo of many has many neighbours; itself where it has none."""
        return self


class CacheableMatcher(Matcher):
    """A matcher with an extraction step for each photo alone, whose results many pairs share and a cache can hold.

    `packed_layout`: the layout of what `pack` gives, as in `io.cache`; None: it is not checked.
    """

    packed_layout: ClassVar[Layout | None] = None

    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        return self.match_features(*self.extract_all([rgb1, rgb2]))

    @abstractmethod
    def extract(self, rgb: np.ndarray) -> Any:
        """The features of a photo (H, W, 3) uint8 of any size."""

    def extract_all(self, photos: Sequence[np.ndarray]) -> list[Any]:
        """`extract` of a few photos, at once where that is quicker."""
        return [self.extract(rgb) for rgb in photos]

    def extract_rotated(self, rgb: np.ndarray, quarter_turns: int) -> Any:
        """The features of a photo that is rotated clockwise by quarter turns, at the pixels of the photo as it is."""
        if quarter_turns % 4 == 0:
            return self.extract(rgb)
        features = self.extract(np.ascontiguousarray(np.rot90(rgb, -quarter_turns)))
        return self._rotated(features, quarter_turns % 4, rgb.shape[1], rgb.shape[0])

    @abstractmethod
    def _rotated(self, features: Any, quarter_turns: int, width: int, height: int) -> Any:
        """Features of a photo of `width` x `height` px that was rotated, as features of the photo as it is."""

    @abstractmethod
    def match_features(self, features1: Any, features2: Any) -> Matches:
        """Matches of two photos from their features."""

    @abstractmethod
    def pack(self, features: Any) -> dict[str, np.ndarray]:
        """Features as arrays for a cache, floats of networks in half precision."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, np.ndarray]) -> Any:
        """Features from what `pack` gave."""


class FeatureMatcher(CacheableMatcher):
    """A matcher of keypoints, which are the same in all pairs of a photo. `largest_first`: they come in the order of
    their size in the photo. `revision`: another number for features that are not those of before."""

    largest_first: bool = False
    revision: int = 0
    side_multiple: int = 1
    packed_layout: ClassVar[Layout | None] = {
        "points": ("f", ("N", 2)),
        "descriptors": ("f", ("N", "C")),
        "size": ("i", (2,)),
        "original_per_pixel": ("f", (2,)),
        "turns": ("i", (1,)),
    }

    def extract(self, rgb: np.ndarray) -> Features:
        """Keypoints of a photo (H, W, 3) uint8 of any size."""
        photo = resize(rgb, self.working_size_px, self.side_multiple)
        points, descriptors = self._detect(photo.rgb)
        return Features(photo, points, descriptors)

    def match_features(self, features1: Features, features2: Features) -> Matches:
        """Matches of two photos' keypoints."""
        index1, index2, scores = self.match_indices(features1, features2)
        return self._matches(features1, features2, features1.points[index1], features2.points[index2], scores)

    def match_indices(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which keypoints match: indices (M,) into `features1.points` and `features2.points`, scores (M,) float32."""
        if min(len(features1.points), len(features2.points)) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        index1, index2, scores = self._compare(features1, features2)
        return index1, index2, scores.astype(np.float32)

    def _matches(
        self, features1: Features, features2: Features, points1: np.ndarray, points2: np.ndarray, scores: np.ndarray
    ) -> Matches:
        """Matches of points (M, 2) of the resized photos."""
        return Matches(
            features1.photo.to_original(points1),
            features2.photo.to_original(points2),
            scores,
            len(features1.points),
            len(features2.points),
            features1.photo.pixel_size,
            features2.photo.pixel_size,
        )

    def _rotated(self, features: Features, quarter_turns: int, width: int, height: int) -> Features:
        return replace(features, photo=replace(features.photo, quarter_turns=quarter_turns))

    def pack(self, features: Features) -> dict[str, np.ndarray]:
        return {
            "points": np.asarray(features.points, np.float32),
            "descriptors": self._as_array(features.descriptors).astype(np.float16),
            "size": np.array(features.photo.rgb.shape[:2], np.int64),
            "original_per_pixel": np.array(features.photo.original_per_pixel, np.float64),
            "turns": np.array([features.photo.quarter_turns], np.int64),
        }

    def unpack(self, packed: Mapping[str, np.ndarray]) -> Features:
        """The features without the photo, of which only the size is left."""
        height, width = packed["size"].tolist()
        blank = np.broadcast_to(np.zeros((), np.uint8), (height, width, 3))
        x, y = packed["original_per_pixel"].tolist()
        descriptors = self._from_array(packed["descriptors"].astype(np.float32))
        quarter_turns = int(packed["turns"][0])
        return Features(ResizedImage(blank, (x, y), quarter_turns), packed["points"].astype(np.float64), descriptors)

    def _as_array(self, descriptors: Any) -> np.ndarray:
        """(N, C) array of the matcher's descriptors."""
        return np.asarray(descriptors)

    def _from_array(self, descriptors: np.ndarray) -> Any:
        """The matcher's descriptors from (N, C) float32."""
        return descriptors

    @abstractmethod
    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, Any]:
        """Keypoints (N, 2) in pixels, centres at integers, of rgb (h, w, 3) uint8, and their descriptors."""

    @abstractmethod
    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """index1, index2, scores (M,) of the matches; neither image is without keypoints."""


def resize(rgb: np.ndarray, long_side_px: int, side_multiple: int = 1) -> ResizedImage:
    """A photo (H, W, 3) uint8 with its long side resized to `long_side_px`, by area to reduce and bicubic to enlarge.

    Both sides are rounded to multiples of `side_multiple`; each axis has its own scale. ValueError for another array.
    """
    import cv2

    check_photo(rgb)
    height, width = rgb.shape[:2]
    scale = long_side_px / max(height, width)
    new_width, new_height = (max(1, round(side * scale / side_multiple)) * side_multiple for side in (width, height))
    if (new_width, new_height) == (width, height):
        return ResizedImage(np.ascontiguousarray(rgb), (1.0, 1.0))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(rgb, (new_width, new_height), interpolation=interpolation)
    return ResizedImage(resized, (width / new_width, height / new_height))


def check_photo(rgb: np.ndarray) -> None:
    """ValueError for what is no photo (H, W, 3) uint8."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or min(rgb.shape) == 0:
        raise ValueError(f"a photo must be (H, W, 3) uint8, not {rgb.shape} {rgb.dtype}")
