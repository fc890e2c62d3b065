"""XFeat + LighterGlue as kornia has it, on the published weights: what our own implementation is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.checkpoints.foreign import open_foreign
from dune_cli.errors import DuneError
from dune_cli.matchers import _kornia


class KorniaXFeatLighterGlue(_kornia.LightGlueMatcher):
    """Skips the test where kornia or the published files are not here."""

    name = "kornia's xfeat-lighterglue"
    side_multiple = 32
    detection_threshold = 0.05

    def __init__(self, working_size_px: int = 960, max_keypoints: int = 2048) -> None:
        import torch

        feature = pytest.importorskip("kornia.feature")
        self.device = torch.device("cpu")
        self.working_size_px, self.max_keypoints = working_size_px, max_keypoints
        try:
            file, glue = open_foreign("xfeat"), open_foreign("xfeat-lighterglue")
        except DuneError as error:
            pytest.skip(str(error))
        self.source = file.source
        self.network = _kornia.fill(feature.XFeat().net, file.tree, "xfeat")
        self.glue = _kornia.light_glue("xfeat", glue.tree, "xfeat-lighterglue")

    def _detect(self, rgb: np.ndarray) -> tuple[np.ndarray, object]:
        import torch

        from dune_cli.models.keypoints import centre_of_mass, descriptors_at, detect, heatmap_of

        with torch.inference_mode():
            descriptors, logits, reliability = self.network(self._tensor(rgb))
            heatmap = heatmap_of(logits)
            xy = detect(heatmap, reliability, self.detection_threshold, self.max_keypoints)
            described = descriptors_at(descriptors, xy, (heatmap.shape[-1], heatmap.shape[-2]))
        return centre_of_mass(heatmap, xy).numpy().astype(np.float64), described
