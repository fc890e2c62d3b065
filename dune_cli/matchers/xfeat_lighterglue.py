"""XFeat keypoints (Potje et al. 2024) matched by LighterGlue: a small network, quick on CPUs."""

from __future__ import annotations

import numpy as np

from dune_cli.matchers import _kornia
from dune_cli.matchers.base import Availability, Matcher
from dune_cli.runtime import pick_device

NAME = "xfeat-lighterglue"
WEIGHTS = ("xfeat", "xfeat-lighterglue")
MEASURED_AUC10 = 0.45
TAKES_MODEL = False


class XFeatLighterGlue(_kornia.LightGlueMatcher):
    """kornia's XFeat network and LightGlue with the published weights."""

    name = NAME
    side_multiple = 32

    def __init__(
        self,
        device: str = "auto",
        working_size_px: int = 960,
        max_keypoints: int = 2048,
        detection_threshold: float = 0.05,
    ) -> None:
        self.device = pick_device(device)
        self.working_size_px = working_size_px
        self.max_keypoints = max_keypoints
        self.detection_threshold = detection_threshold
        network = _kornia.require_features().XFeat().net
        state, self.source = _kornia.open_weights("xfeat")
        self.network = _kornia.fill(network, state, "xfeat").to(self.device)
        state, _ = _kornia.open_weights("xfeat-lighterglue")
        self.glue = _kornia.light_glue("xfeat", state, "xfeat-lighterglue").to(self.device)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        """The published detection (softmax over 8x8 cells, 5x5 maxima, score times reliability) made sub-pixel."""
        import torch

        from dune_cli.models.keypoints import centre_of_mass, descriptors_at, detect, heatmap_of

        with torch.inference_mode():
            descriptors, logits, reliability = self.network(self._tensor(rgb))
            heatmap = heatmap_of(logits)
            xy = detect(heatmap, reliability, self.detection_threshold, self.max_keypoints)
            points = centre_of_mass(heatmap, xy)
            described = descriptors_at(descriptors, xy, (heatmap.shape[-1], heatmap.shape[-2]))
        return points.cpu().numpy().astype(np.float64), described


def availability() -> Availability:
    """Needs kornia and two weight files."""
    return _kornia.availability(WEIGHTS)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return XFeatLighterGlue(device)
