"""MOSAIC as a teacher of semantic segmentation. Source: Wang & Howard, arXiv 2112.11623; weights Apache-2.0 (Google).

It tells ADE20K's 31 commonest classes apart; what is none of them (a dog, a bicycle) goes to what surrounds it.
`weights/build/bake_open_networks.py` writes its file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.third_party import open_third_party
from dune_cli.models.mosaic import CLASSES, PYRAMID, Mosaic
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import CLS, PATCH, Teacher, as_tokens, resample_map

DEFAULT_WEIGHTS = "mosaic"
SIDE_PX = 512  # MOSAIC was trained on squares of this size


class MosaicTeacher(Teacher):
    """Class logits (32) and the pyramid's features (128): 160 channels. In bfloat16 98.8 % of pixels keep their class.

    The image is resized (bilinear, antialiased) to 512 x 512, whatever its shape, as in MOSAIC's training.
    """

    name = "mosaic"
    widths = {CLS: len(CLASSES) + PYRAMID, PATCH: len(CLASSES) + PYRAMID}  # noqa: RUF012 (a constant of the class)
    note = "a CNN without CLS: the mean of its patches stands for it"

    def __init__(self, net: Mosaic, source: Source, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net, self.source, self.dtype = net.to(memory_format=torch.channels_last), source, dtype

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        with self._autocast(images.device):
            found = self.net(_square(images, SIDE_PX))
            joined = torch.cat([resample_map(found.logits, grid), resample_map(found.features, grid)], 1)
        return {CLS: joined.mean((2, 3)), PATCH: as_tokens(joined)}

    def logits(self, images: torch.Tensor, side_px: int = SIDE_PX) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1] -> class logits (B, 32, side_px/4, side_px/4) of the whole images."""
        with self._autocast(images.device):
            return self.net(_square(images, side_px)).logits.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def _square(images: torch.Tensor, side_px: int) -> torch.Tensor:
    size = (side_px, side_px)
    squares = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return squares.contiguous(memory_format=torch.channels_last)


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """MOSAIC from the registry name `mosaic`, or from the file `weights`. `dtype` is that of its convolutions."""
    file = open_third_party(weights, "mosaic")
    net = Mosaic()
    file.load_into(net, "MOSAIC")
    return MosaicTeacher(net.to(device).eval(), file.source, dtype)
