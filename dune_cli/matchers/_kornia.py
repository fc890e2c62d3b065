"""kornia's classes (Apache-2.0) filled with weight files that `checkpoints` opens: what `aliked-lightglue` runs on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import DuneError
from dune_cli.matchers.matcher import Availability, FeatureMatcher, Features

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dune_cli.checkpoints.third_party import ThirdPartyWeights

CURE = "pip install 'dune-cli[matchers]'"


def availability(weights: Iterable[str]) -> Availability:
    """Whether kornia and the named weights are here. Imports neither kornia nor torch."""
    from dune_cli.checkpoints import weights_folder

    if importlib.util.find_spec("kornia") is None:
        return Availability(False, "the package kornia is not installed", CURE)
    for name in weights:
        try:
            weights_folder.locate(name)
        except DuneError as error:
            return Availability(False, " ".join(str(error).split()), f"dune weights pull {name}")
    return Availability(True)


def require_features() -> ModuleType:
    """`kornia.feature`. PackageMissing says how to install it."""
    optional.require("kornia", "this matcher", extra="matchers")
    return optional.require("kornia.feature", "this matcher", extra="matchers")


def light_glue(features: str, file: ThirdPartyWeights) -> nn.Module:
    """LightGlue (Lindenberger et al. 2023) for `features` ("aliked" or "xfeat") with published weights."""
    from dune_cli.checkpoints.state_dict import without
    from dune_cli.checkpoints.third_party import rename_lightglue

    LightGlue = require_features().LightGlue
    options = {key: value for key, value in LightGlue.features[features].items() if key != "weights"}
    module = LightGlue(features=None, weights=None, **options)
    renamed = replace(file, state_dict=without(rename_lightglue(file.state_dict), ("extractor.",)))
    renamed.load_into(module, f"LightGlue for {features}", given=("confidence_thresholds",))
    return module.eval()


class LightGlueMatcher(FeatureMatcher):
    """A keypoint network and LightGlue. Descriptors are (N, C) float32 tensors on the matcher's device."""

    device: torch.device
    glue: nn.Module

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        data = {}
        for key, features in (("image0", features1), ("image1", features2)):
            height, width = features.photo.rgb.shape[:2]
            data[key] = {
                "keypoints": torch.from_numpy(features.points).to(self.device, torch.float32)[None],
                "descriptors": features.descriptors[None],
                "image_size": torch.tensor([[width, height]], device=self.device),
            }
        with torch.inference_mode():
            found = self.glue(data)
        pairs = found["matches"][0].cpu().numpy()
        return pairs[:, 0], pairs[:, 1], found["scores"][0].float().cpu().numpy().clip(0, 1)

    def _as_array(self, descriptors: torch.Tensor) -> np.ndarray:
        return descriptors.cpu().numpy()

    def _from_array(self, descriptors: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(descriptors).to(self.device)

    def _tensor(self, rgb: np.ndarray) -> torch.Tensor:
        """(1, 3, h, w) float32 in [0, 1] on the device."""
        import torch

        return torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float() / 255
