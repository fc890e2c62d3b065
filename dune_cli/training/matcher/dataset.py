"""Two views of one photo under a random homography and photometric noise: exact correspondences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli.errors import JobFailed
from dune_cli.io.photos import read_photo
from dune_cli.matchers.dune import Dune, EncoderExtractor
from dune_cli.matchers.matcher import resize
from dune_cli.models.match_head import KeypointFeatures, MatchHead
from dune_cli.training.matcher.config import MatcherConfig
from dune_cli.training.matcher.loss import FORBIDDEN_PX, Labels, exact_labels, sparse_labels
from dune_cli.training.matcher.scenes import group_of
from dune_cli.training.matcher.sequences import RealPair

SCALE = 3.0  # between the views, at most
TURN_DEG = 45.0  # beyond it, XFeat's descriptors no longer say anything: recall 0 at half a turn
TILT = 0.35  # perspective: how much the homogeneous scale changes across the photo, at most
SIZES = 0.45, 0.9  # of the matcher's size, between which the views' sizes are drawn


@dataclass(frozen=True)
class WarpedPair:
    """rgb0, rgb1 (h, w, 3) uint8, sides multiples of 32; H (3, 3) takes pixels of 0 to pixels of 1, centres at
    integers; seen1 (h, w) bool: where image 1 shows the photo."""

    rgb0: np.ndarray
    rgb1: np.ndarray
    H: np.ndarray
    seen1: np.ndarray


def warped_pair(rgb: np.ndarray, size_px: int, rng: np.random.Generator) -> WarpedPair:
    """A pair out of a photo (H, W, 3) uint8; all that is random is drawn from `rng`."""
    import cv2

    side = size_px * rng.uniform(*SIZES)
    rgb0 = resize(rgb, max(32, round(side)), 32).rgb
    height, width = rgb0.shape[:2]
    H = random_homography((width, height), rng)
    rgb1 = cv2.warpPerspective(rgb0, H, (width, height), flags=cv2.INTER_CUBIC)
    seen1 = cv2.warpPerspective(np.full((height, width), 255, np.uint8), H, (width, height)) == 255
    seen1 = cv2.erode(seen1.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=1).astype(bool)
    background = rng.integers(0, 256, 3).astype(np.uint8)
    rgb1 = np.where(seen1[..., None], rgb1, background)
    return WarpedPair(noisy(rgb0, rng), noisy(rgb1, rng), H, seen1)


def random_homography(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Turn, scale, shear, perspective and shift about the centre of an image of `size` (width, height)."""
    centre = (np.array(size, dtype=np.float64) - 1) / 2
    half = max(size) / 2
    turn = np.radians(rng.triangular(-TURN_DEG, 0, TURN_DEG))
    scale = SCALE ** rng.triangular(-1, 0, 1)
    squeeze = np.diag(2.0 ** (rng.uniform(-0.5, 0.5) * np.array([1, -1])))
    axis = rng.uniform(0, np.pi)
    A = scale * _turned(turn) @ _turned(axis) @ squeeze @ _turned(-axis)
    H = np.eye(3)
    H[:2, :2] = A
    H[2, :2] = rng.uniform(-TILT, TILT, 2) / half
    shift = rng.uniform(-0.5, 0.5, 2) * half * min(1.0, max(scale, 0.5))
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = -centre, centre + shift
    H = back @ H @ to
    return H / H[2, 2]


def apply(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through H; not finite where they fall behind the horizon."""
    moved = np.concatenate([points, np.ones((len(points), 1))], 1) @ H.T
    scale = np.where(moved[:, 2] * H[2, 2] > 1e-6, moved[:, 2], np.nan)
    return moved[:, :2] / scale[:, None]


def noisy(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, gamma, colour cast, blur, grain and JPEG, each now and then."""
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


def _turned(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


# Pairs of images as the matcher is trained on them: which, a function of seed and step alone.


REMEMBERED = 1000  # photos whose keypoints are kept in memory: 1.5 to 2.5 GB
EASY_DEG = 8.0  # pairs that turned less are drawn at a fifth of the rate
TRIES = 8


@dataclass(frozen=True)
class TrainingPair:
    """Two images' keypoints, each at most the config's number, and which match. H: of a warped photo, pixels of 0 to
    pixels of 1. far (M, N) bool: pairs that the epipolar geometry forbids."""

    seen0: KeypointFeatures
    seen1: KeypointFeatures
    labels: Labels
    H: np.ndarray | None
    far: np.ndarray | None


class TrainingPairs:
    """Draws examples: warped photos and real pairs, scenes alike in weight, wide baselines preferred."""

    def __init__(
        self,
        config: MatcherConfig,
        eye: EncoderExtractor,
        head: MatchHead,
        pairs: Sequence[RealPair],
        photos: Sequence[Path],
    ) -> None:
        self.config, self.eye, self.head, self.photos = config, eye, head, photos
        self._groups: dict[str, list[RealPair]] = {}
        for pair in pairs:
            self._groups.setdefault(group_of(pair.scene), []).append(pair)
        self._seen: OrderedDict[Path, tuple[KeypointFeatures, tuple[float, float]]] = OrderedDict()

    def draw(self, step: int, place: int) -> TrainingPair:
        """The example at a place of a step. JobFailed if no try gives one with labels."""
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.config.seed, step, place, attempt])
            warped = not self._groups or rng.random() < self.config.warped_share
            example = self._warped(rng) if warped else self._real(rng)
            if len(example.labels.matches) >= 8:
                return example
        raise JobFailed(
            f"{TRIES} pairs in a row at step {step} had no labels; give more or other --scenes and --photos"
        )

    def _warped(self, rng: np.random.Generator) -> TrainingPair:
        rgb = read_photo(self.photos[rng.integers(len(self.photos))]).rgb
        pair = warped_pair(rgb, self.config.size_px, rng)
        seen0, seen1 = self.eye.extract(pair.rgb0, self.head), self.eye.extract(pair.rgb1, self.head)
        whole = seen1.xy.round().long()
        visible = torch.from_numpy(pair.seen1)[whole[:, 1].cpu(), whole[:, 0].cpu()].to(whole.device)
        seen1 = KeypointFeatures(seen1.xy[visible], seen1.values[visible], seen1.size)
        points0, points1 = (seen.xy.cpu().numpy().astype(np.float64) for seen in (seen0, seen1))
        back = np.linalg.inv(pair.H)
        labels = exact_labels(
            points0, points1, apply(pair.H, points0), apply(back / back[2, 2], points1), seen0.size, seen1.size
        )
        return self._thinned(seen0, seen1, labels, pair.H, rng)

    def _real(self, rng: np.random.Generator) -> TrainingPair:
        group = list(self._groups)[rng.integers(len(self._groups))]
        pairs = self._groups[group]
        weights = np.array([0.2 if 0 < pair.turn_deg < EASY_DEG else 1.0 for pair in pairs])
        pair = pairs[rng.choice(len(pairs), p=weights / weights.sum())]
        (seen0, per0), (seen1, per1) = (self._look(path) for path in pair.photos)
        known0, known1 = _to_view(pair.points0, per0), _to_view(pair.points1, per1)
        F = None
        if pair.F is not None:
            F = _from_view(per1).T @ pair.F @ _from_view(per0)
            F = F / np.linalg.norm(F)
        points0, points1 = (seen.xy.cpu().numpy().astype(np.float64) for seen in (seen0, seen1))
        labels = sparse_labels(points0, points1, known0, known1, F)
        if rng.random() < 0.5:
            seen0, seen1 = seen1, seen0
            F = F.T if F is not None else None
            labels = Labels(labels.matches[:, ::-1], labels.none1, labels.none0, F)
        return self._thinned(seen0, seen1, labels, None, rng)

    def _look(self, path: Path) -> tuple[KeypointFeatures, tuple[float, float]]:
        """A photo's keypoints at the matcher's size, and original pixels per pixel of it."""
        if path not in self._seen:
            photo = resize(read_photo(path).rgb, self.config.size_px, Dune.side_multiple)
            seen = self.eye.extract(photo.rgb, self.head)
            self._seen[path] = KeypointFeatures(seen.xy, seen.values.half(), seen.size), photo.original_per_pixel
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self._seen.move_to_end(path)
        return self._seen[path]

    def _thinned(
        self,
        seen0: KeypointFeatures,
        seen1: KeypointFeatures,
        labels: Labels,
        H: np.ndarray | None,
        rng: np.random.Generator,
    ) -> TrainingPair:
        """At most the config's number of keypoints: the matches and, of the others, some by chance."""
        keep0 = _some(len(seen0.xy), labels.matches[:, 0], self.config.keypoints, rng)
        keep1 = _some(len(seen1.xy), labels.matches[:, 1], self.config.keypoints, rng)
        new0, new1 = _places(len(seen0.xy), keep0), _places(len(seen1.xy), keep1)
        matches = np.stack([new0[labels.matches[:, 0]], new1[labels.matches[:, 1]]], axis=1)
        none0, none1 = new0[labels.none0], new1[labels.none1]
        thin = Labels(matches[(matches >= 0).all(1)], none0[none0 >= 0], none1[none1 >= 0], labels.F)
        seen0, seen1 = (
            KeypointFeatures(seen.xy[torch.from_numpy(keep)], seen.values[torch.from_numpy(keep)].float(), seen.size)
            for seen, keep in ((seen0, keep0), (seen1, keep1))
        )
        return TrainingPair(seen0, seen1, thin, H, None if labels.F is None else _far(seen0, seen1, labels.F))


def _some(count: int, wanted: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of range(count), sorted: of the wanted ones at most three quarters of that, then others."""
    wanted = rng.permutation(wanted)[: 3 * most // 4]
    others = rng.permutation(np.setdiff1d(np.arange(count), wanted))[: most - len(wanted)]
    return np.sort(np.concatenate([wanted, others]))


def _places(count: int, keep: np.ndarray) -> np.ndarray:
    places = np.full(count, -1, dtype=np.int64)
    places[keep] = np.arange(len(keep))
    return places


def _far(seen0: KeypointFeatures, seen1: KeypointFeatures, F: np.ndarray) -> np.ndarray:
    homogeneous0, homogeneous1 = (
        np.concatenate([seen.xy.cpu().numpy(), np.ones((len(seen.xy), 1))], 1) for seen in (seen0, seen1)
    )
    lines = homogeneous0 @ F.T
    lines = lines / np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    return np.abs(lines @ homogeneous1.T) > FORBIDDEN_PX


def _to_view(points: np.ndarray, original_per_pixel: tuple[float, float]) -> np.ndarray:
    return (points + 0.5) / np.asarray(original_per_pixel) - 0.5


def _from_view(original_per_pixel: tuple[float, float]) -> np.ndarray:
    sx, sy = original_per_pixel
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])
