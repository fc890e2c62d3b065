"""kornia's classes (Apache-2.0) filled with weight files that `checkpoints` opens: what `aliked-lightglue` runs on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import CheckpointError, DuneError
from dune_cli.matchers.matcher import Availability, FeatureMatcher, Features

if TYPE_CHECKING:
    import torch
    from torch import nn

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


def fill(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    what: str,
    own_buffers: Iterable[str] = (),
    dropped: Iterable[str] = (),
) -> nn.Module:
    """Loads `state`, strictly but for the module's `own_buffers` and the file's `dropped` key prefixes."""
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(dropped))}
    try:
        missing, unexpected = module.load_state_dict(kept, strict=False)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"the file of {what} does not fit: {' '.join(str(error).split())[:300]}") from error
    missing = [key for key in missing if key not in set(own_buffers)]
    if missing or unexpected:
        raise CheckpointError(f"the file of {what} does not fit: missing keys {missing}, unexpected keys {unexpected}")
    return module.eval()


def light_glue(features: str, state: Mapping[str, torch.Tensor], what: str) -> nn.Module:
    """LightGlue (Lindenberger et al. 2023) for `features` ("aliked" or "xfeat") from a published state dict."""
    from dune_cli.checkpoints.third_party import glue_names

    LightGlue = require_features().LightGlue
    options = {key: value for key, value in LightGlue.features[features].items() if key != "weights"}
    module = LightGlue(features=None, weights=None, **options)
    renamed = glue_names(state)
    return fill(module, renamed, what, own_buffers=["confidence_thresholds"], dropped=["extractor."])


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
