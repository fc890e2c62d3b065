"""XFeat, ALIKED and LightGlue as kornia has them, on the same weights: what our own implementations are compared with.

Tests that use them are skipped where kornia is not here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dune_cli.checkpoints.state_dict import without
from dune_cli.checkpoints.third_party import (
    ThirdPartyWeights,
    open_lighter_glue,
    open_third_party,
    open_xfeat,
    rename_lightglue,
)
from dune_cli.matchers.matcher import FeatureMatcher, Features
from dune_cli.models.match_head import centre_of_mass, descriptors_at, detect, heatmap_of

UNUSED = "fine_matcher."  # the copy that comes with dune has no part that matching does not use


def xfeat_network(file: ThirdPartyWeights) -> torch.nn.Module:
    """kornia's XFeat with the weights of `file`."""
    net = pytest.importorskip("kornia.feature").XFeat(top_k=1).net
    file.load_into(net, "kornia's XFeat", given=(UNUSED,), allow_unexpected=True)
    return net.eval()


def light_glue(features: str, file: ThirdPartyWeights) -> torch.nn.Module:
    """kornia's LightGlue for `features` ("aliked" or "xfeat") with the weights of `file`."""
    LightGlue = pytest.importorskip("kornia.feature").LightGlue
    options = {key: value for key, value in LightGlue.features[features].items() if key != "weights"}
    module = LightGlue(features=None, weights=None, **options)
    renamed = replace(file, state_dict=without(rename_lightglue(file.state_dict), ("extractor.",)))
    renamed.load_into(module, f"LightGlue for {features}", given=("confidence_thresholds",))
    return module.eval()


def compare(
    glue: torch.nn.Module, features1: Features, features2: Features
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `FeatureMatcher._compare` gives, by kornia's LightGlue."""
    data = {}
    for key, features in (("image0", features1), ("image1", features2)):
        height, width = features.photo.rgb.shape[:2]
        data[key] = {
            "keypoints": torch.from_numpy(features.points).float()[None],
            "descriptors": features.descriptors[None],
            "image_size": torch.tensor([[width, height]]),
        }
    with torch.inference_mode():
        found = glue(data)
    pairs = found["matches"][0].numpy()
    return pairs[:, 0], pairs[:, 1], found["scores"][0].float().numpy().clip(0, 1)


class KorniaXFeatLighterGlue(FeatureMatcher):
    name = "kornia's xfeat-lighterglue"
    side_multiple = 32
    detection_threshold = 0.05

    def __init__(self, working_size_px: int = 960, max_keypoints: int = 2048) -> None:
        self.working_size_px, self.max_keypoints = working_size_px, max_keypoints
        file = open_xfeat()
        self.source = file.source
        self.network = xfeat_network(file)
        self.glue = light_glue("xfeat", open_lighter_glue())

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        image = torch.tensor(rgb).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            descriptors, logits, reliability = self.network(image)
            heatmap = heatmap_of(logits)
            xy = detect(heatmap, reliability, self.detection_threshold, self.max_keypoints)
            described = descriptors_at(descriptors, xy, (heatmap.shape[-1], heatmap.shape[-2]))
        return centre_of_mass(heatmap, xy).numpy().astype(np.float64), described

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return compare(self.glue, features1, features2)


class KorniaAlikedLightGlue(FeatureMatcher):
    """On the published float32 weights."""

    name = "kornia's aliked-lightglue"

    def __init__(self, working_size_px: int, max_keypoints: int = 2048, detection_threshold: float = 0.01) -> None:
        self.working_size_px = working_size_px
        self.aliked = pytest.importorskip("kornia.feature").ALIKED(
            model_name="aliked-n16", max_num_keypoints=max_keypoints, detection_threshold=detection_threshold
        )
        file = open_third_party("aliked-n16", "aliked-n16")
        self.source = file.source
        file.load_into(self.aliked.eval(), "kornia's ALIKED", given=("dkd.hw_grid",))
        self.glue = light_glue("aliked", open_third_party("aliked-lightglue", "aliked-lightglue"))

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        with torch.inference_mode():
            found = self.aliked(torch.tensor(rgb).permute(2, 0, 1)[None].float() / 255)[0]
        return found.keypoints.numpy().astype(np.float64), found.descriptors

    def _compare(self, features1: Features, features2: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return compare(self.glue, features1, features2)
