"""ALIKED-n16's dense map as a teacher of matching. Source: Zhao et al., "ALIKED", IEEE TIM 2023; weights BSD-3-Clause.

The map that its keypoint head stands on, 128 channels at every pixel. XFeat's map matched better at 1/35 of the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.third_party import is_copy, open_aliked, open_third_party
from dune_cli.models.aliked import WIDTH, Aliked
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, as_tokens


class AlikedTeacher(Teacher):
    """The L2-normalised map at stride 1, averaged over the cells of the student's grid; no CLS. Input RGB in [0, 1].

    Always float32.
    """

    name = "aliked"
    widths = {PATCH: WIDTH}  # noqa: RUF012 (a constant of the class)

    def __init__(self, net: Aliked, source: Source, note: str = "") -> None:
        super().__init__()
        self.net, self.source, self.note = net, source, note

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            features = self.net.dense_map(images.float())
        return {PATCH: as_tokens(F.adaptive_avg_pool2d(features, grid))}


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """ALIKED-n16 from the file `weights`, else the published one where it is here, else the copy of it."""
    file = open_third_party(weights, "aliked-n16") if weights else open_aliked()
    net = Aliked()
    file.load_into(net, "ALIKED-n16")
    note = "weights: the float16 copy that comes with dune" if is_copy(file) else ""
    return AlikedTeacher(net.eval().fold().to(device), file.source, note)
