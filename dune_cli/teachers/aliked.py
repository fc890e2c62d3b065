"""ALIKED-n16's dense map as a teacher of matching. Source: Zhao et al., "ALIKED", IEEE TIM 2023; weights BSD-3-Clause.

The map that its keypoint head stands on, 128 channels at every pixel. XFeat's map matched better at 1/35 of the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli import optional
from dune_cli.checkpoints.third_party import open_third_party
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, as_tokens

DEFAULT_WEIGHTS = "aliked-n16"
CHANNELS = 128
OWN_BUFFERS = ("dkd.hw_grid",)


class AlikedTeacher(Teacher):
    """The L2-normalised map at stride 1, averaged over the cells of the student's grid; no CLS. Input RGB in [0, 1].

    Always float32: its deformable convolutions know no other type on a CPU.
    """

    name = "aliked"
    widths = {PATCH: CHANNELS}  # noqa: RUF012 (a constant of the class)

    def __init__(self, net: torch.nn.Module, source: Source) -> None:
        super().__init__()
        self.net, self.source = net, source

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            features = self.net.extract_dense_map(images.float())[0]
        return {PATCH: as_tokens(F.adaptive_avg_pool2d(features, grid))}


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """ALIKED-n16 from the registry name `aliked-n16`, or from the file `weights`."""
    feature = optional.require("kornia.feature", "the teacher aliked")
    file = open_third_party(weights, "aliked-n16")
    net = feature.ALIKED(model_name="aliked-n16")
    file.load_into(net, "ALIKED-n16", given=OWN_BUFFERS)
    return AlikedTeacher(net.to(device).eval(), file.source)
