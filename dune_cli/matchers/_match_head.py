"""What the matchers on a `MatchHead` share: `dune`, whose encoder sees more, and XFeat + LighterGlue as published."""

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
    """A photo at the matcher's size to keypoints, by XFeat's backbone. One pass a photo."""

    def __init__(self, xfeat: XFeatStem) -> None:
        self.xfeat = xfeat

    @property
    def device(self) -> torch.device:
        return next(self.xfeat.parameters()).device

    def look(self, rgb: np.ndarray, head: MatchHead) -> KeypointFeatures:
        """rgb (h, w, 3) uint8, sides multiples of 32 -> keypoints before any trained layer."""
        import torch

        with torch.inference_mode():
            image = self._tensor(rgb)
            return head.extract(image, self.xfeat(image), self._around(rgb, head))

    def _around(self, rgb: np.ndarray, head: MatchHead) -> dict[str, torch.Tensor]:
        """The context's maps that are not XFeat's."""
        return {}

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255


class HeadMatcher(FeatureMatcher):
    """An eye and a head. Descriptors are (N, width + fine) float32 tensors on the eye's device."""

    side_multiple = 32

    def __init__(self, eye: XFeatExtractor, head: MatchHead) -> None:
        self.eye, self.head = eye, head
        self.working_size_px = head.config.long_side_px
        self.source: Source = head.source

    def match_features(self, features1: Features, features2: Features) -> Matches:
        """As of any matcher, with both points of every match moved by the head's refinement, if it has one."""
        import torch

        index1, index2, scores = self.match_indices(features1, features2)
        points = features1.points[index1], features2.points[index2]
        if len(index1) and self.head.refinement is not None:
            with torch.inference_mode():
                seen = self._seen(features1), self._seen(features2)
                index = (torch.from_numpy(i).to(seen[0].xy.device) for i in (index1, index2))
                offsets = self.head.offsets(*seen, *index)
            points = tuple(p + o.cpu().numpy().astype(np.float64) for p, o in zip(points, offsets))
        return Matches(
            features1.photo.to_original(points[0]),
            features2.photo.to_original(points[1]),
            scores,
            len(features1.points),
            len(features2.points),
            features1.photo.pixel_size,
            features2.photo.pixel_size,
        )

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, Any]:
        import torch

        with torch.inference_mode():
            seen = self.head.embed(self.eye.look(rgb, self.head))
        return seen.xy.cpu().numpy().astype(np.float64), seen.values

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode():
            index1, index2, scores = self.head.match(self._seen(features1), self._seen(features2))
        return index1.cpu().numpy(), index2.cpu().numpy(), scores.cpu().numpy()

    def _as_array(self, descriptors: Any) -> np.ndarray:
        return descriptors.cpu().numpy()

    def _from_array(self, descriptors: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(descriptors).to(self.eye.device)

    def _seen(self, features: Features) -> KeypointFeatures:
        import torch

        from dune_cli.models.match_head import KeypointFeatures

        height, width = features.photo.rgb.shape[:2]
        xy = torch.from_numpy(features.points).to(self.eye.device, torch.float32)
        return KeypointFeatures(xy, features.descriptors, (width, height))
