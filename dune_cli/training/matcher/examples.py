"""Pairs of images as the matcher is trained on them: which, a function of seed and step alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli.errors import JobFailed
from dune_cli.io.photos import read_photo
from dune_cli.matchers.base import resize
from dune_cli.matchers.dune import Dune, Eye
from dune_cli.models.match_head import MatchHead, Seen
from dune_cli.training.matcher.config import MatcherConfig
from dune_cli.training.matcher.homographies import apply, warped_pair
from dune_cli.training.matcher.labels import Labels, exact_labels, sparse_labels
from dune_cli.training.matcher.loss import FORBIDDEN_PX
from dune_cli.training.matcher.scenes import group_of
from dune_cli.training.matcher.sequences import RealPair

REMEMBERED = 1000  # photos whose keypoints are kept in memory: 1.5 to 2.5 GB
EASY_DEG = 8.0  # pairs that turned less are drawn at a fifth of the rate
TRIES = 8


@dataclass(frozen=True)
class Example:
    """Two images' keypoints, each at most the config's number, and which match. H: of a warped photo, pixels of 0 to
    pixels of 1. far (M, N) bool: pairs that the epipolar geometry forbids."""

    seen0: Seen
    seen1: Seen
    labels: Labels
    H: np.ndarray | None
    far: np.ndarray | None


class Examples:
    """Draws examples: warped photos and real pairs, scenes alike in weight, wide baselines preferred."""

    def __init__(
        self, config: MatcherConfig, eye: Eye, head: MatchHead, pairs: Sequence[RealPair], photos: Sequence[Path]
    ) -> None:
        self.config, self.eye, self.head, self.photos = config, eye, head, photos
        self._groups: dict[str, list[RealPair]] = {}
        for pair in pairs:
            self._groups.setdefault(group_of(pair.scene), []).append(pair)
        self._seen: OrderedDict[Path, tuple[Seen, tuple[float, float]]] = OrderedDict()

    def draw(self, step: int, place: int) -> Example:
        """The example at a place of a step. JobFailed if no try gives one with labels."""
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.config.seed, step, place, attempt])
            warped = not self._groups or rng.random() < self.config.warped_share
            example = self._warped(rng) if warped else self._real(rng)
            if len(example.labels.matches) >= 8:
                return example
        raise JobFailed(f"{TRIES} pairs in a row at step {step} had no labels; give more or other --data and --photos")

    def _warped(self, rng: np.random.Generator) -> Example:
        rgb = read_photo(self.photos[rng.integers(len(self.photos))]).rgb
        pair = warped_pair(rgb, self.config.size_px, rng)
        seen0, seen1 = self.eye.look(pair.rgb0, self.head), self.eye.look(pair.rgb1, self.head)
        whole = seen1.xy.round().long()
        visible = torch.from_numpy(pair.seen1)[whole[:, 1].cpu(), whole[:, 0].cpu()].to(whole.device)
        seen1 = Seen(seen1.xy[visible], seen1.values[visible], seen1.size)
        points0, points1 = (seen.xy.cpu().numpy().astype(np.float64) for seen in (seen0, seen1))
        back = np.linalg.inv(pair.H)
        labels = exact_labels(
            points0, points1, apply(pair.H, points0), apply(back / back[2, 2], points1), seen0.size, seen1.size
        )
        return self._thinned(seen0, seen1, labels, pair.H, rng)

    def _real(self, rng: np.random.Generator) -> Example:
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

    def _look(self, path: Path) -> tuple[Seen, tuple[float, float]]:
        """A photo's keypoints at the matcher's size, and original pixels per pixel of it."""
        if path not in self._seen:
            photo = resize(read_photo(path).rgb, self.config.size_px, Dune.side_multiple)
            seen = self.eye.look(photo.rgb, self.head)
            self._seen[path] = Seen(seen.xy, seen.values.half(), seen.size), photo.original_per_pixel
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self._seen.move_to_end(path)
        return self._seen[path]

    def _thinned(
        self, seen0: Seen, seen1: Seen, labels: Labels, H: np.ndarray | None, rng: np.random.Generator
    ) -> Example:
        """At most the config's number of keypoints: the matches and, of the others, some by chance."""
        keep0 = _some(len(seen0.xy), labels.matches[:, 0], self.config.keypoints, rng)
        keep1 = _some(len(seen1.xy), labels.matches[:, 1], self.config.keypoints, rng)
        new0, new1 = _places(len(seen0.xy), keep0), _places(len(seen1.xy), keep1)
        matches = np.stack([new0[labels.matches[:, 0]], new1[labels.matches[:, 1]]], axis=1)
        none0, none1 = new0[labels.none0], new1[labels.none1]
        thin = Labels(matches[(matches >= 0).all(1)], none0[none0 >= 0], none1[none1 >= 0], labels.F)
        seen0, seen1 = (
            Seen(seen.xy[torch.from_numpy(keep)], seen.values[torch.from_numpy(keep)].float(), seen.size)
            for seen, keep in ((seen0, keep0), (seen1, keep1))
        )
        return Example(seen0, seen1, thin, H, None if labels.F is None else _far(seen0, seen1, labels.F))


def _some(count: int, wanted: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of range(count), sorted: of the wanted ones at most three quarters of that, then others."""
    wanted = rng.permutation(wanted)[: 3 * most // 4]
    others = rng.permutation(np.setdiff1d(np.arange(count), wanted))[: most - len(wanted)]
    return np.sort(np.concatenate([wanted, others]))


def _places(count: int, keep: np.ndarray) -> np.ndarray:
    places = np.full(count, -1, dtype=np.int64)
    places[keep] = np.arange(len(keep))
    return places


def _far(seen0: Seen, seen1: Seen, F: np.ndarray) -> np.ndarray:
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
