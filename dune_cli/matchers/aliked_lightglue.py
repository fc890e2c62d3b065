"""ALIKED-n16 keypoints (Zhao et al. 2023) matched by LightGlue: the most accurate of the matchers, and the slowest."""

from __future__ import annotations

import numpy as np

from dune_cli.matchers import _kornia
from dune_cli.matchers.matcher import Availability, Matcher
from dune_cli.runtime import pick_device

NAME = "aliked-lightglue"
WEIGHTS = ("aliked-n16", "aliked-lightglue")
MEASURED_AUC10 = 0.66
TAKES_MODEL = False


class AlikedLightGlue(_kornia.LightGlueMatcher):
    """kornia's ALIKED and LightGlue with the published weights."""

    name = NAME

    def __init__(
        self,
        device: str = "auto",
        working_size_px: int = 896,
        max_keypoints: int = 2048,
        detection_threshold: float = 0.01,
    ) -> None:
        from dune_cli.checkpoints.third_party import open_third_party

        self.device = pick_device(device)
        self.working_size_px = working_size_px
        aliked = _kornia.require_features().ALIKED(
            model_name="aliked-n16", max_num_keypoints=max_keypoints, detection_threshold=detection_threshold
        )
        file = open_third_party("aliked-n16", "aliked-n16")
        self.source = file.source
        file.load_into(aliked, "ALIKED-n16", given=("dkd.hw_grid",))
        self.aliked = aliked.eval().to(self.device)
        self.glue = _kornia.light_glue("aliked", open_third_party("aliked-lightglue", "aliked-lightglue")).to(
            self.device
        )

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        import torch

        with torch.inference_mode():
            found = self.aliked(self._tensor(rgb))[0]
        return found.keypoints.cpu().numpy().astype(np.float64), found.descriptors


def availability() -> Availability:
    """Needs kornia and two weight files."""
    return _kornia.availability(WEIGHTS)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return AlikedLightGlue(device)
