"""XFeat keypoints (Potje et al. 2024) matched by LighterGlue: a small network, about a second a pair on two cores."""

from __future__ import annotations

import numpy as np

from dune_cli.matchers import _kornia
from dune_cli.matchers.base import Availability, Matcher
from dune_cli.runtime import pick_device

NAME = "xfeat-lighterglue"
WEIGHTS = ("xfeat", "xfeat-lighterglue")
MEASURED_AUC10 = 0.40
TAKES_MODEL = False


class XFeatLighterGlue(_kornia.LightGlueMatcher):
    """kornia's XFeat and LightGlue with the published weights."""

    name = NAME
    side_multiple = 32

    def __init__(self, device: str = "auto", working_size_px: int = 960, max_keypoints: int = 2048) -> None:
        self.device = pick_device(device)
        self.working_size_px = working_size_px
        xfeat = _kornia.require("kornia.feature").XFeat(top_k=max_keypoints)
        state, self.source = _kornia.open_weights("xfeat")
        _kornia.fill(xfeat.net, state, "xfeat")
        self.xfeat = xfeat.eval().to(self.device)
        state, _ = _kornia.open_weights("xfeat-lighterglue")
        self.glue = _kornia.light_glue("xfeat", state, "xfeat-lighterglue").to(self.device)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        found = self.xfeat.detectAndCompute(self._tensor(rgb))[0]
        return found["keypoints"].cpu().numpy().astype(np.float64), found["descriptors"]


def availability() -> Availability:
    """Needs kornia and two weight files."""
    return _kornia.availability(WEIGHTS)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return XFeatLighterGlue(device)
