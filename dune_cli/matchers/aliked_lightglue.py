"""ALIKED-n16 keypoints (Zhao et al. 2023) matched by LightGlue: the most accurate of the matchers, and the slowest.

kornia has ALIKED's network (Apache-2.0); LightGlue is our own. Both have the published weights.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import DuneError
from dune_cli.matchers.matcher import Availability, FeatureMatcher, Features, Matcher
from dune_cli.runtime import pick_device

if TYPE_CHECKING:
    import torch

NAME = "aliked-lightglue"
WEIGHTS = ("aliked-n16", "aliked-lightglue")
MEASURED_AUC10 = 0.66
TAKES_MODEL = False
DEPTH_CONFIDENCE, WIDTH_CONFIDENCE, MATCH_THRESHOLD = 0.95, 0.99, 0.1  # LightGlue's published settings


class AlikedLightGlue(FeatureMatcher):
    """Descriptors are (N, 128) float32 tensors on the matcher's device."""

    name = NAME

    def __init__(
        self,
        device: str = "auto",
        working_size_px: int = 896,
        max_keypoints: int = 2048,
        detection_threshold: float = 0.01,
    ) -> None:
        """PackageMissing without kornia, WeightsMissing and CheckpointError for the weight files."""
        from dune_cli.checkpoints.third_party import open_third_party, rename_lightglue
        from dune_cli.models.lightglue import LightGlue, LightGlueConfig

        self.device = pick_device(device)
        self.working_size_px = working_size_px
        aliked = optional.require("kornia.feature", f"the matcher {NAME}").ALIKED(
            model_name="aliked-n16", max_num_keypoints=max_keypoints, detection_threshold=detection_threshold
        )
        file = open_third_party("aliked-n16", "aliked-n16")
        self.source = file.source
        file.load_into(aliked, "ALIKED-n16", given=("dkd.hw_grid",))
        self.aliked = aliked.eval().to(self.device)
        config = LightGlueConfig(inputs=128, width=256, layers=9, heads=4, prune_below=1 - WIDTH_CONFIDENCE)
        glue = LightGlue(config, DEPTH_CONFIDENCE)
        file = open_third_party("aliked-lightglue", "aliked-lightglue")
        replace(file, state_dict=rename_lightglue(file.state_dict)).load_into(glue, "LightGlue for ALIKED")
        self.glue = glue.eval().to(self.device)

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        import torch

        image = torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            features = self.aliked(image)[0]
        return features.keypoints.cpu().numpy().astype(np.float64), features.descriptors

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        from dune_cli.models.lightglue import normalised

        with torch.inference_mode():
            embedded = [self.glue.input_proj(features.descriptors) for features in (features1, features2)]
            positions = []
            for features in (features1, features2):
                height, width = features.photo.rgb.shape[:2]
                xy = torch.from_numpy(features.points).to(self.device, torch.float32)
                positions.append(normalised(xy, (width, height)))
            index1, index2, scores = self.glue.match(*embedded, *positions, MATCH_THRESHOLD)
        return index1.cpu().numpy(), index2.cpu().numpy(), scores.cpu().numpy().clip(0, 1)

    def _as_array(self, descriptors: torch.Tensor) -> np.ndarray:
        return descriptors.cpu().numpy()

    def _from_array(self, descriptors: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(descriptors).to(self.device)


def availability() -> Availability:
    """Needs kornia and two weight files. Imports neither kornia nor torch."""
    from dune_cli.checkpoints import weights_folder

    if importlib.util.find_spec("kornia") is None:
        return Availability(False, "the package kornia is not installed", "pip install kornia")
    for name in WEIGHTS:
        try:
            weights_folder.locate(name)
        except DuneError as error:
            return Availability(False, " ".join(str(error).split()), f"dune weights pull {name}")
    return Availability(True)


def build(device: str, dtype: str, model: str | None, encoder: str | None) -> Matcher:
    return AlikedLightGlue(device)
