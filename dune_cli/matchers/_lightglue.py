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

    def _use(self, glue: LightGlue) -> None:
        """Matches by `glue`: packed where it is float32 on the CPU, which is quicker; else as it is."""
        import torch

        from dune_cli.models.lightglue_inference import PackedLightGlue

        kinds = {(parameter.device.type, parameter.dtype) for parameter in glue.parameters()}
        self.device = next(glue.parameters()).device
        self.glue = PackedLightGlue(glue) if kinds == {("cpu", torch.float32)} else glue

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
