"""ALIKED-n16's dense map as a teacher of matching. Source: Zhao et al., "ALIKED", IEEE TIM 2023; weights BSD-3-Clause.

The map that its keypoint head stands on, 128 channels at every pixel. XFeat's map matched better at 1/35 of the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli import optional
from dune_cli.checkpoints.third_party import open_foreign
from dune_cli.errors import CheckpointError
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, as_tokens

CHANNELS = 128
OWN_BUFFERS = {"dkd.hw_grid"}


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


def load(argument: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """ALIKED-n16 from the registry name `aliked-n16`, or from the file `argument`."""
    feature = optional.require("kornia.feature", "the teacher aliked", extra="teachers")
    file = open_foreign(argument or "aliked-n16", "aliked-n16")
    net = feature.ALIKED(model_name="aliked-n16")
    try:
        missing, unexpected = net.load_state_dict(file.tree, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file.path} does not fit ALIKED: {' '.join(str(error).split())[:300]}") from error
    wrong = [*(key for key in missing if key not in OWN_BUFFERS), *unexpected]
    if wrong:
        raise CheckpointError(
            f"{file.path} does not fit ALIKED-n16: {len(wrong)} keys differ, such as {', '.join(wrong[:3])}"
        )
    return AlikedTeacher(net.to(device).eval(), file.source)
