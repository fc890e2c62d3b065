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
        """The published detection (softmax over 8x8 cells, 5x5 maxima, score times reliability) made sub-pixel.

        Published keypoints are whole pixels. The heatmap's centre of mass in the 5x5 window lowers the median error
        of matches under known homographies from 0.57 to 0.45 px (512-px photos at the working size of 960).
        """
        import torch
        from torch.nn import functional as F

        with torch.inference_mode():
            descriptors, logits, reliability = self.network(self._tensor(rgb))
            heatmap = F.pixel_shuffle(logits.softmax(dim=1)[:, :64], 8)
            peaks = (heatmap == F.max_pool2d(heatmap, 5, stride=1, padding=2)) & (heatmap > self.detection_threshold)
            xy = peaks[0, 0].nonzero().flip(1)
            height, width = heatmap.shape[-2:]
            # sampled as in training: positions over (side - 1), maps aligned by their pixels' edges
            grid = (2 * xy / torch.tensor([width - 1, height - 1], device=xy.device) - 1)[None, :, None]
            scores = heatmap[0, 0, xy[:, 1], xy[:, 0]]
            scores = scores * F.grid_sample(reliability, grid, align_corners=False)[0, 0, :, 0]
            best = scores.topk(min(self.max_keypoints, len(scores))).indices
            sampled = F.grid_sample(F.normalize(descriptors, dim=1), grid[:, best], mode="bicubic", align_corners=False)
            points = _centre_of_mass(heatmap[0, 0], xy[best])
        return points.cpu().numpy().astype(np.float64), F.normalize(sampled[0, :, :, 0].T, dim=1)


def _centre_of_mass(heatmap: object, xy: object) -> object:
    """Pixels (N, 2) whole -> float32, moved to the centre of mass of the heatmap (h, w) in their 5x5 window."""
    import torch
    from torch.nn import functional as F

    steps = torch.arange(-2, 3, device=heatmap.device)
    padded = F.pad(heatmap, (2, 2, 2, 2))
    window = padded[xy[:, 1, None, None] + 2 + steps[:, None], xy[:, 0, None, None] + 2 + steps]
    total = window.sum(dim=(1, 2))
    offset = torch.stack([(window * steps).sum(dim=(1, 2)), (window * steps[:, None]).sum(dim=(1, 2))], dim=1)
    return xy + offset / total[:, None]


def availability() -> Availability:
    """Needs kornia and two weight files."""
    return _kornia.availability(WEIGHTS)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return XFeatLighterGlue(device)
