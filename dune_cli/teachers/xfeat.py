"""XFeat's dense descriptors as a teacher of matching. Source: Potje et al., "XFeat", CVPR 2024; weights Apache-2.0."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.third_party import is_copy, open_third_party, open_xfeat
from dune_cli.models.stems import XFeatStem
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, as_tokens, fold_map

STRIDE = 8
CHANNELS = 64
MULTIPLE = 32  # of the sides that the network takes
CELLS = 2  # of XFeat in a student's token, each way: 4 x 64 channels


class XFeatTeacher(Teacher):
    """The L2-normalised 64-channel map at stride 8, two by two cells to a token: 256 channels, no CLS.

    The image is resized so that a token covers 16 x 16 of XFeat's pixels, then padded by its edge to sides that are
    multiples of 32; the cells of the padding are dropped. Always float32.
    """

    name = "xfeat"
    widths = {PATCH: CHANNELS * CELLS**2}  # noqa: RUF012 (a constant of the class)

    def __init__(self, net: XFeatStem, source: Source, note: str = "") -> None:
        super().__init__()
        self.net, self.source, self.note = net, source, note

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        height, width = (side * STRIDE * CELLS for side in grid)
        if tuple(images.shape[-2:]) != (height, width):
            images = F.interpolate(images, size=(height, width), mode="bicubic", align_corners=True)
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        features = F.normalize(self.net(padded)[STRIDE], dim=1)[..., : grid[0] * CELLS, : grid[1] * CELLS]
        folded = fold_map(features, grid)
        if folded is None:
            raise AssertionError(f"XFeat's map {tuple(features.shape[-2:])} does not subdivide the grid {grid}")
        return {PATCH: as_tokens(folded)}


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """XFeat from the file `weights`, else the published one where it is here, else its copy that comes with dune."""
    file = open_third_party(weights, "xfeat") if weights else open_xfeat()
    net = XFeatStem()
    file.load_into(net, "XFeat", allow_unexpected=True)
    note = "weights: the float16 copy that comes with dune" if is_copy(file) else ""
    return XFeatTeacher(net.to(device).eval(), file.source, note)
