"""LoMa-B128 (docs/models/loma.md): DaD's keypoints with DeDoDe-B's descriptors, matched by LoMa.

Meant for GPUs: on one thread of a processor it takes about a minute a pair. Its weights are downloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dune_cli.matchers._lightglue import LightGlueMatcher
from dune_cli.matchers._weights import availability_by_weights
from dune_cli.matchers.matcher import Availability, Features, Matcher, ResizedImage, check_photo

if TYPE_CHECKING:
    import torch

NAME = "loma-b128"
WEIGHTS = "loma-b128"
MEASURED_AUC10 = None  # its weights were not at hand, so that "auto" leaves it out
MEASURED_SECONDS = None
TAKES_MODEL = False
DETECTION_PX = 1024  # long side
DESCRIPTION_PX = 784  # both sides
MAX_KEYPOINTS = 2048


class LomaB128(LightGlueMatcher):
    """The detector sees a photo at `working_size_px`, the descriptor a square of `description_px`, as published."""

    name = NAME

    def __init__(
        self,
        device: str = "auto",
        dtype: str = "auto",
        working_size_px: int = DETECTION_PX,
        description_px: int = DESCRIPTION_PX,
        max_keypoints: int = MAX_KEYPOINTS,
    ) -> None:
        """Both sizes are multiples of 8. WeightsMissing or CheckpointError where the file is missing or damaged."""
        from dune_cli.checkpoints.loader import load_loma

        self.working_size_px, self.description_px = working_size_px, description_px
        self.max_keypoints = max_keypoints
        self.network = load_loma(WEIGHTS, device, dtype)
        self._use(self.network.glue)
        self.source = self.network.source

    def extract(self, rgb: np.ndarray) -> Features:
        check_photo(rgb)
        height, width = rgb.shape[:2]
        size = detection_size(width, height, self.working_size_px)
        photo = ResizedImage(_resized(rgb, size), (width / size[0], height / size[1]))
        return Features(photo, *self._features(photo.rgb, rgb))

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        return self._features(rgb, rgb)

    def _features(self, rgb: np.ndarray, original: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Keypoints in pixels of rgb (h, w, 3), sides multiples of 8, and their descriptors from the original photo."""
        import torch

        with torch.inference_mode():
            xy, _ = self.network.detector(self._tensor(rgb), self.max_keypoints)
            square = _resized(original, (self.description_px, self.description_px))
            descriptors = self.network.descriptor(self._tensor(square), xy)
        size = np.array([rgb.shape[1], rgb.shape[0]], np.float64)
        points = (xy.cpu().numpy().astype(np.float64) + 1) / 2 * size - 0.5
        # the sub-pixel position of a keypoint at the border may lie outside
        return points.clip(-0.5, size - 0.5), descriptors

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._match(features1, features2)

    def _positions(self, xy: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return 2 * (xy + 0.5) / xy.new_tensor([width, height]) - 1


def detection_size(width: int, height: int, long_side_px: int) -> tuple[int, int]:
    """Width and height that the detector sees: the long side as given; both are whole multiples of 8, rounded down."""
    from dune_cli.models.loma import STRIDE

    sides = (int(side * long_side_px / max(width, height)) // STRIDE * STRIDE for side in (width, height))
    new_width, new_height = (max(STRIDE, side) for side in sides)
    return new_width, new_height


def _resized(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """rgb (H, W, 3) uint8 as (height, width, 3) of `size` (width, height): Pillow's bicubic, as the published code."""
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def availability() -> Availability:
    """Needs its weights, which no package carries."""
    return availability_by_weights(WEIGHTS)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return LomaB128(device, dtype)
