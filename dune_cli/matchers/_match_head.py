"""Matchers on a `MatchHead`: `dune`, which adds an encoder's context, and XFeat + LighterGlue as published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli.matchers.matcher import FeatureMatcher, Features, Matches
from dune_cli.provenance import Source

if TYPE_CHECKING:
    import torch

    from dune_cli.models.match_head import KeypointFeatures, MatchHead
    from dune_cli.models.stems import XFeatStem


class XFeatExtractor:
    """A photo at the matcher's size to keypoints, by XFeat's backbone."""

    def __init__(self, xfeat: XFeatStem) -> None:
        self.xfeat = xfeat

    @property
    def device(self) -> torch.device:
        return next(self.xfeat.parameters()).device

    def extract(self, rgb: np.ndarray, head: MatchHead) -> KeypointFeatures:
        """rgb (h, w, 3) uint8, sides multiples of 32 -> keypoints and their values before any trained layer."""
        import torch

        with torch.inference_mode():
            image = self._tensor(rgb)
            return head.extract(image, self.xfeat(image), self._context(rgb, head))

    def _context(self, rgb: np.ndarray, head: MatchHead) -> dict[str, torch.Tensor]:
        """The maps of the head's context that are not XFeat's."""
        return {}

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255


class HeadMatcher(FeatureMatcher):
    """An extractor and a head. Descriptors are (N, width + fine) float32 tensors on the extractor's device."""

    side_multiple = 32

    def __init__(self, extractor: XFeatExtractor, head: MatchHead) -> None:
        self.extractor, self.head = extractor, head
        self.working_size_px = head.config.long_side_px
        self.source: Source = head.source

    def match_features(self, features1: Features, features2: Features) -> Matches:
        """As of any matcher, with both points of every match moved by the head's refinement, if it has one."""
        import torch

        index1, index2, scores = self.match_indices(features1, features2)
        points = features1.points[index1], features2.points[index2]
        if len(index1) and self.head.refinement is not None:
            with torch.inference_mode():
                embedded = self._embedded(features1), self._embedded(features2)
                indices = (torch.from_numpy(index).to(embedded[0].xy.device) for index in (index1, index2))
                offsets = self.head.offsets(*embedded, *indices)
            points = tuple(p + offset.cpu().numpy().astype(np.float64) for p, offset in zip(points, offsets))
        return self._matches(features1, features2, *points, scores)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, Any]:
        import torch

        with torch.inference_mode():
            embedded = self.head.embed(self.extractor.extract(rgb, self.head))
        return embedded.xy.cpu().numpy().astype(np.float64), embedded.values

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode():
            index1, index2, scores = self.head.match(self._embedded(features1), self._embedded(features2))
        return index1.cpu().numpy(), index2.cpu().numpy(), scores.cpu().numpy()

    def _as_array(self, descriptors: Any) -> np.ndarray:
        return descriptors.cpu().numpy()

    def _from_array(self, descriptors: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(descriptors).to(self.extractor.device)

    def _embedded(self, features: Features) -> KeypointFeatures:
        import torch

        from dune_cli.models.match_head import KeypointFeatures

        height, width = features.photo.rgb.shape[:2]
        xy = torch.from_numpy(features.points).to(self.extractor.device, torch.float32)
        return KeypointFeatures(xy, features.descriptors, (width, height))
