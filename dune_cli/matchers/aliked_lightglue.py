"""ALIKED-n16 keypoints (Zhao et al. 2023) matched by LightGlue (Lindenberger et al. 2023): the most accurate of the
matchers that come with dune.

LightGlue stops at the layer after which its matches are settled, and leaves out points that have no match. With
`first_keypoints` it sees the best keypoints first, and all of them only where these match, but too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.matchers._lightglue import LightGlueMatcher
from dune_cli.matchers._weights import availability_by_weights
from dune_cli.matchers.matcher import Availability, Features, Matcher
from dune_cli.runtime import torch_threads

if TYPE_CHECKING:
    import torch

NAME = "aliked-lightglue"
WEIGHTS = "aliked-lightglue-bundled"
MEASURED_AUC10 = 0.67
MEASURED_SECONDS = 0.8
TAKES_MODEL = False
# of many photos: on 224 frames of a room those that sift leaves out were all placed, at half of the time
MANY_SIZE_PX, MANY_KEYPOINTS = 640, 1024
FIRST_KEYPOINTS = 2048  # all at once: with 1,024 first, and photos of 640 px, AUC@10 fell to 0.58 on 64 wide pairs
# of the first keypoints: fewer are hopeless, more are enough; all keypoints are matched between both
PROMISING_MATCHES, ENOUGH_MATCHES = 12, 150


class AlikedLightGlue(LightGlueMatcher):
    """Keypoints are sorted, the best first. Descriptors are (N, 128) float32 tensors on the matcher's device."""

    name = NAME

    def __init__(
        self,
        device: str = "auto",
        working_size_px: int = 896,
        max_keypoints: int = 2048,
        detection_threshold: float = 0.01,
        dtype: str = "auto",
        first_keypoints: int = FIRST_KEYPOINTS,
    ) -> None:
        """`first_keypoints`: how many of each photo are matched first; `max_keypoints` or more: all at once.

        WeightsMissing or CheckpointError where the file that comes with dune is lost or damaged.
        """
        from dune_cli.checkpoints.loader import load_aliked_lightglue

        self.working_size_px = working_size_px
        self.max_keypoints, self.detection_threshold = max_keypoints, detection_threshold
        self.first_keypoints = first_keypoints
        self.network = load_aliked_lightglue(WEIGHTS, device, dtype)
        self._use(self.network.glue, may_round=dtype == "auto")
        self.source = self.network.source

    def for_many(self) -> AlikedLightGlue:
        """With MANY_SIZE_PX and MANY_KEYPOINTS."""
        matcher = copy(self)
        matcher.working_size_px, matcher.max_keypoints = MANY_SIZE_PX, MANY_KEYPOINTS
        matcher.source = replace(self.source, name=f"{self.source.name}, {MANY_KEYPOINTS} keypoints")
        matcher.reload = None if self.reload is None else partial(_loaded_for_many, self.reload)
        return matcher

    def extract_all(self, photos: Sequence[np.ndarray]) -> list[Features]:
        if self.device.type != "cpu":
            return super().extract_all(photos)
        with torch_threads() as run:
            return run(self.extract, photos)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        import torch

        image = torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            found = self.network.aliked(image, self.max_keypoints, self.detection_threshold)
        return found.xy.cpu().numpy().astype(np.float64), found.descriptors

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = self._match(_best(features1, self.first_keypoints), _best(features2, self.first_keypoints))
        more = max(len(features1.points), len(features2.points)) > self.first_keypoints
        too_little = PROMISING_MATCHES <= len(first[0]) < ENOUGH_MATCHES
        return self._match(features1, features2) if more and too_little else first

    def _positions(self, xy: torch.Tensor, width: int, height: int) -> torch.Tensor:
        from dune_cli.models.lightglue import normalised

        return normalised(xy, (width, height))


def _loaded_for_many(load: Callable[[], Matcher]) -> Matcher:
    return load().for_many()


def _best(features: Features, count: int) -> Features:
    """The first `count` keypoints."""
    return replace(features, points=features.points[:count], descriptors=features.descriptors[:count])


def availability() -> Availability:
    """Always ready: the weights come with dune."""
    return availability_by_weights(WEIGHTS, cure="pip install --force-reinstall dune-cli")


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return AlikedLightGlue(device, dtype=dtype)
