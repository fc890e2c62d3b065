"""FastDepth as a teacher of depth in rooms. Source: Wofk et al., ICRA 2019; weights MIT, made by a script.

It learned from NYU Depth v2: inside rooms, 0.7 to 10 m, its depth is metric; outdoors it tells little more than that
the ground is near. `weights/build/bake_open_networks.py` writes its file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.third_party import open_third_party
from dune_cli.models.fastdepth import DECODER, STRIDE, FastDepth
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, as_tokens, resample_map

DEFAULT_WEIGHTS = "fastdepth"
SHORT_SIDE_PX = 224  # FastDepth was trained on squares of this size
NEAREST_M = 0.1


class FastDepthTeacher(Teacher):
    """The logarithm of depth in metres and the 16 features of the last decoder stage: 17 channels. Always float32.

    The image is resized (bilinear, antialiased) to a short side of about 224 px; maps are the mean of the image's and
    its mirror image's, averaged over the student's cells.
    """

    name = "fastdepth"
    widths = {CLS: 1 + DECODER[-1], PATCH: 1 + DECODER[-1]}  # noqa: RUF012 (a constant of the class)
    note = "a CNN without CLS: the mean of its patches stands for it"

    def __init__(self, net: FastDepth, source: Source) -> None:
        super().__init__()
        self.net, self.source = net, source

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        scale = SHORT_SIDE_PX / min(images.shape[-2:])
        size = [max(1, round(side * scale / STRIDE)) * STRIDE for side in images.shape[-2:]]
        with torch.autocast(images.device.type, enabled=False):
            images = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
            maps = self._maps(images)
            joined = resample_map((maps + self._maps(images.flip(-1)).flip(-1)) / 2, grid)
        return {CLS: joined.mean((2, 3)), PATCH: as_tokens(joined)}

    def _maps(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 17, H/2, W/2): log-depth and features."""
        found = self.net(images)
        log_depth = F.avg_pool2d(found.depth[:, None].clamp(min=NEAREST_M).log(), 2)
        return torch.cat([log_depth, found.features], 1)


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """FastDepth from the registry name `fastdepth`, or from the file `weights`. Stays in float32, whatever `dtype`."""
    file = open_third_party(weights, "fastdepth")
    net = FastDepth()
    file.load_into(net, "FastDepth")
    return FastDepthTeacher(net.to(device).eval(), file.source)
