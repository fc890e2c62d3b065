"""Training pairs of the matcher: photos under random homographies and photometric noise, with exact correspondences,
and real pairs with a teacher's. Which ones are drawn is a function of seed and step alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import resize_transform
from dune_cli.io.photos import read_photo
from dune_cli.matchers.dune import Dune, EncoderExtractor
from dune_cli.matchers.matcher import resize
from dune_cli.models.match_head import KeypointFeatures, MatchHead
from dune_cli.training.matcher.config import MatcherConfig
from dune_cli.training.matcher.loss import FORBIDDEN_PX, Labels, exact_labels, sparse_labels
from dune_cli.training.matcher.scenes import group_of
from dune_cli.training.matcher.sequences import RealPair

MAX_SCALE = 3.0  # between the views
MAX_ROTATION_DEG = 45.0  # beyond it, XFeat's descriptors match nothing: recall 0 at 180 degrees
MAX_PERSPECTIVE = 0.35  # change of the homogeneous scale across the photo
SIZE_RANGE = 0.45, 0.9  # of the views, in sizes of the matcher
CACHED_PHOTOS = 1000  # whose keypoints are kept in memory: 1.5 to 2.5 GB
EASY_DEG, EASY_WEIGHT = 8.0, 0.2  # real pairs with a smaller view angle are drawn with this weight
TRIES = 8
MIN_MATCHES = 8


@dataclass(frozen=True)
class WarpedPair:
    """rgb0, rgb1 (h, w, 3) uint8, sides multiples of 32; H (3, 3) maps pixels of 0 to pixels of 1, centres at
    integers; valid1 (h, w) bool: where image 1 shows the photo."""

    rgb0: np.ndarray
    rgb1: np.ndarray
    H: np.ndarray
    valid1: np.ndarray


def warped_pair(rgb: np.ndarray, size_px: int, rng: np.random.Generator) -> WarpedPair:
    """A pair made of a photo (H, W, 3) uint8; all random numbers are drawn from `rng`."""
    import cv2

    side = size_px * rng.uniform(*SIZE_RANGE)
    rgb0 = resize(rgb, max(32, round(side)), 32).rgb
    height, width = rgb0.shape[:2]
    H = random_homography((width, height), rng)
    rgb1 = cv2.warpPerspective(rgb0, H, (width, height), flags=cv2.INTER_CUBIC)
    valid1 = cv2.warpPerspective(np.full((height, width), 255, np.uint8), H, (width, height)) == 255
    valid1 = cv2.erode(valid1.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=1).astype(bool)
    background = rng.integers(0, 256, 3).astype(np.uint8)
    rgb1 = np.where(valid1[..., None], rgb1, background)
    return WarpedPair(photometric_noise(rgb0, rng), photometric_noise(rgb1, rng), H, valid1)


def random_homography(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rotation, scale, shear, perspective and translation about the centre of an image of `size` (width, height)."""
    centre = (np.array(size, dtype=np.float64) - 1) / 2
    half = max(size) / 2
    angle = np.radians(rng.triangular(-MAX_ROTATION_DEG, 0, MAX_ROTATION_DEG))
    scale = MAX_SCALE ** rng.triangular(-1, 0, 1)
    stretch = np.diag(2.0 ** (rng.uniform(-0.5, 0.5) * np.array([1, -1])))
    axis = rng.uniform(0, np.pi)
    H = np.eye(3)
    H[:2, :2] = scale * _rotation(angle) @ _rotation(axis) @ stretch @ _rotation(-axis)
    H[2, :2] = rng.uniform(-MAX_PERSPECTIVE, MAX_PERSPECTIVE, 2) / half
    translation = rng.uniform(-0.5, 0.5, 2) * half * min(1.0, max(scale, 0.5))
    to_centre, from_centre = np.eye(3), np.eye(3)
    to_centre[:2, 2], from_centre[:2, 2] = -centre, centre + translation
    H = from_centre @ H @ to_centre
    return H / H[2, 2]


def apply_homography(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through H; not finite where they fall behind the horizon."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1) @ H.T
    scale = np.where(homogeneous[:, 2] * H[2, 2] > 1e-6, homogeneous[:, 2], np.nan)
    return homogeneous[:, :2] / scale[:, None]


def photometric_noise(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, gamma and colour cast always; blur, grain and JPEG at random."""
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


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


@dataclass(frozen=True)
class TrainingPair:
    """The keypoints of two images, each at most the config's number, and which match. H: of a warped photo, from pixels
    of 0 to pixels of 1. forbidden (M, N) bool: keypoints that contradict the epipolar geometry, or None."""

    features0: KeypointFeatures
    features1: KeypointFeatures
    labels: Labels
    H: np.ndarray | None
    forbidden: np.ndarray | None


class TrainingPairs:
    """Draws training pairs: warped photos and real pairs, with equal weights of scenes, wide baselines preferred."""

    def __init__(
        self,
        config: MatcherConfig,
        extractor: EncoderExtractor,
        head: MatchHead,
        pairs: Sequence[RealPair],
        photos: Sequence[Path],
    ) -> None:
        self.config, self.extractor, self.head, self.photos = config, extractor, head, photos
        self._groups: dict[str, list[RealPair]] = {}
        for pair in pairs:
            self._groups.setdefault(group_of(pair.scene), []).append(pair)
        self._cache: OrderedDict[Path, tuple[KeypointFeatures, tuple[float, float]]] = OrderedDict()

    def draw(self, step: int, index: int) -> TrainingPair:
        """Pair `index` of a step. JobFailed if no try gives one with labels."""
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.config.seed, step, index, attempt])
            warped = not self._groups or rng.random() < self.config.warped_share
            pair = self._warped(rng) if warped else self._real(rng)
            if len(pair.labels.matches) >= MIN_MATCHES:
                return pair
        raise JobFailed(
            f"{TRIES} pairs in a row at step {step} had no labels; give more or other --scenes and --photos"
        )

    def _warped(self, rng: np.random.Generator) -> TrainingPair:
        rgb = read_photo(self.photos[rng.integers(len(self.photos))]).rgb
        pair = warped_pair(rgb, self.config.size_px, rng)
        features0, features1 = (self.extractor.extract(image, self.head) for image in (pair.rgb0, pair.rgb1))
        pixels = features1.xy.round().long()
        valid = torch.from_numpy(pair.valid1)[pixels[:, 1].cpu(), pixels[:, 0].cpu()].to(pixels.device)
        features1 = KeypointFeatures(features1.xy[valid], features1.values[valid], features1.size)
        points0, points1 = _points(features0), _points(features1)
        inverse = np.linalg.inv(pair.H)
        warped0 = apply_homography(pair.H, points0)
        warped1 = apply_homography(inverse / inverse[2, 2], points1)
        labels = exact_labels(points0, points1, warped0, warped1, features0.size, features1.size)
        return self._subsampled(features0, features1, labels, pair.H, rng)

    def _real(self, rng: np.random.Generator) -> TrainingPair:
        group = list(self._groups)[rng.integers(len(self._groups))]
        pairs = self._groups[group]
        weights = np.array([EASY_WEIGHT if 0 < pair.view_angle_deg < EASY_DEG else 1.0 for pair in pairs])
        pair = pairs[rng.choice(len(pairs), p=weights / weights.sum())]
        (features0, scale0), (features1, scale1) = (self._extract(path) for path in pair.photos)
        matched0, matched1 = _to_resized(pair.points0, scale0), _to_resized(pair.points1, scale1)
        F = None
        if pair.F is not None:
            F = resize_transform(*scale1).T @ pair.F @ resize_transform(*scale0)
            F = F / np.linalg.norm(F)
        labels = sparse_labels(_points(features0), _points(features1), matched0, matched1, F)
        if rng.random() < 0.5:
            features0, features1 = features1, features0
            F = F.T if F is not None else None
            labels = Labels(labels.matches[:, ::-1], labels.unmatched1, labels.unmatched0, F)
        return self._subsampled(features0, features1, labels, None, rng)

    def _extract(self, path: Path) -> tuple[KeypointFeatures, tuple[float, float]]:
        """A photo's keypoints at the matcher's size, and original pixels per pixel of it."""
        if path not in self._cache:
            photo = resize(read_photo(path).rgb, self.config.size_px, Dune.side_multiple)
            features = self.extractor.extract(photo.rgb, self.head)
            half = KeypointFeatures(features.xy, features.values.half(), features.size)
            self._cache[path] = half, photo.original_per_pixel
            if len(self._cache) > CACHED_PHOTOS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(path)
        return self._cache[path]

    def _subsampled(
        self,
        features0: KeypointFeatures,
        features1: KeypointFeatures,
        labels: Labels,
        H: np.ndarray | None,
        rng: np.random.Generator,
    ) -> TrainingPair:
        """At most the config's number of keypoints: the matches, and a random sample of the others."""
        keep0 = _sample_keypoints(len(features0.xy), labels.matches[:, 0], self.config.keypoints, rng)
        keep1 = _sample_keypoints(len(features1.xy), labels.matches[:, 1], self.config.keypoints, rng)
        new0, new1 = _new_indices(len(features0.xy), keep0), _new_indices(len(features1.xy), keep1)
        matches = np.stack([new0[labels.matches[:, 0]], new1[labels.matches[:, 1]]], axis=1)
        unmatched0, unmatched1 = new0[labels.unmatched0], new1[labels.unmatched1]
        labels = Labels(
            matches[(matches >= 0).all(1)], unmatched0[unmatched0 >= 0], unmatched1[unmatched1 >= 0], labels.F
        )
        features0, features1 = (
            KeypointFeatures(
                features.xy[torch.from_numpy(keep)], features.values[torch.from_numpy(keep)].float(), features.size
            )
            for features, keep in ((features0, keep0), (features1, keep1))
        )
        forbidden = None if labels.F is None else _forbidden(_points(features0), _points(features1), labels.F)
        return TrainingPair(features0, features1, labels, H, forbidden)


def _points(features: KeypointFeatures) -> np.ndarray:
    return features.xy.cpu().numpy().astype(np.float64)


def _sample_keypoints(count: int, matched: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """At most `limit` of range(count), sorted: of the matched ones at most three quarters of that, then others."""
    matched = rng.permutation(matched)[: 3 * limit // 4]
    others = rng.permutation(np.setdiff1d(np.arange(count), matched))[: limit - len(matched)]
    return np.sort(np.concatenate([matched, others]))


def _new_indices(count: int, keep: np.ndarray) -> np.ndarray:
    """(count,) each keypoint's index among those of `keep`, -1 for the others."""
    indices = np.full(count, -1, dtype=np.int64)
    indices[keep] = np.arange(len(keep))
    return indices


def _forbidden(points0: np.ndarray, points1: np.ndarray, F: np.ndarray) -> np.ndarray:
    """(M, N) bool: whether a point of image 1 is far from the epipolar line of a point of image 0."""
    homogeneous0, homogeneous1 = (np.concatenate([p, np.ones((len(p), 1))], 1) for p in (points0, points1))
    lines = homogeneous0 @ F.T
    lines = lines / np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    return np.abs(lines @ homogeneous1.T) > FORBIDDEN_PX


def _to_resized(points: np.ndarray, original_per_pixel: tuple[float, float]) -> np.ndarray:
    return (points + 0.5) / np.asarray(original_per_pixel) - 0.5
