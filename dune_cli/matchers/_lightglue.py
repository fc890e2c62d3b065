"""Matchers whose keypoints are compared by a LightGlue: ALIKED + LightGlue, LoMa."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.matchers.matcher import FeatureMatcher, Features

if TYPE_CHECKING:
    import torch

    from dune_cli.models.lightglue import LightGlue

MATCH_THRESHOLD = 0.1  # the published one of both


class LightGlueMatcher(FeatureMatcher):
    """Descriptors are (N, C) float32 tensors on the matcher's device."""

    def _use(self, glue: LightGlue, may_round: bool = False) -> None:
        """Matches by `glue`: packed on the CPU, which is quicker; else as it is. `may_round`: its products may be in
        bfloat16 where the processor is quick at it."""
        import torch

        from dune_cli.models.cpu_products import has_quick_bfloat16
        from dune_cli.models.lightglue_inference import PackedLightGlue

        weight = next(glue.transformers.parameters())
        dtype = torch.bfloat16 if may_round and has_quick_bfloat16() else weight.dtype
        self.device = weight.device
        is_packed = weight.device.type == "cpu" and dtype != torch.float16
        self.glue = PackedLightGlue(glue, dtype) if is_packed else glue

    def _match(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """index1, index2, scores (M,) of two photos' keypoints."""
        import torch

        with torch.inference_mode():
            embedded = [self.glue.input_proj(features.descriptors) for features in (features1, features2)]
            positions = []
            for features in (features1, features2):
                height, width = features.photo.rgb.shape[:2]
                xy = torch.from_numpy(features.points).to(self.device, torch.float32)
                positions.append(self._positions(xy, width, height))
            index1, index2, scores = self.glue.match(*embedded, *positions, MATCH_THRESHOLD)
        return index1.cpu().numpy(), index2.cpu().numpy(), scores.cpu().numpy().clip(0, 1)

    @abstractmethod
    def _positions(self, xy: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Pixels (N, 2) of a photo as the network's positions."""

    def _as_array(self, descriptors: torch.Tensor) -> np.ndarray:
        return descriptors.cpu().numpy()

    def _from_array(self, descriptors: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(descriptors).to(self.device)
