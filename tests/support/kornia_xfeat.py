"""XFeat + LighterGlue as kornia has it, on the same weights: what our own implementation is compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.checkpoints.third_party import ThirdPartyWeights, open_lighter_glue, open_xfeat
from dune_cli.matchers import _kornia
from dune_cli.models.match_head import centre_of_mass, descriptors_at, detect, heatmap_of

UNUSED = "fine_matcher."  # the copy that comes with dune has no part that matching does not use


def network(file: ThirdPartyWeights) -> torch.nn.Module:
    """kornia's XFeat with the weights of `file`; skips the test where kornia is not here."""
    net = pytest.importorskip("kornia.feature").XFeat(top_k=1).net
    file.load_into(net, "kornia's XFeat", given=(UNUSED,), allow_unexpected=True)
    return net.eval()


class KorniaXFeatLighterGlue(_kornia.LightGlueMatcher):
    """Skips the test where kornia is not here."""

    name = "kornia's xfeat-lighterglue"
    side_multiple = 32
    detection_threshold = 0.05

    def __init__(self, working_size_px: int = 960, max_keypoints: int = 2048) -> None:
        self.device = torch.device("cpu")
        self.working_size_px, self.max_keypoints = working_size_px, max_keypoints
        file, glue = open_xfeat(), open_lighter_glue()
        self.source = file.source
        self.network = network(file)
        self.glue = _kornia.light_glue("xfeat", glue)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        with torch.inference_mode():
            descriptors, logits, reliability = self.network(self._tensor(rgb))
            heatmap = heatmap_of(logits)
            xy = detect(heatmap, reliability, self.detection_threshold, self.max_keypoints)
            described = descriptors_at(descriptors, xy, (heatmap.shape[-1], heatmap.shape[-2]))
        return centre_of_mass(heatmap, xy).numpy().astype(np.float64), described
