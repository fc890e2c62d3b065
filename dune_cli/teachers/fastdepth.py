"""FastDepth as a teacher of depth in rooms. Source: Wofk et al., ICRA 2019; weights MIT, made by a script.

It learned from NYU Depth v2: inside rooms, 0.7 to 10 m, its depth is metric; outdoors it tells little more than that
the ground is near. Hence its gate: MOSAIC tells rooms from the outdoors by photo, and FastDepth itself must say the
same of a photo and of its mirror image, by pixel. `weights/build/bake_open_networks.py` writes both files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.third_party import open_third_party
from dune_cli.models.fastdepth import DECODER, STRIDE, FastDepth
from dune_cli.models.mosaic import CLASSES, is_outdoor
from dune_cli.provenance import Source
from dune_cli.teachers import mosaic
from dune_cli.teachers.teacher import CLS, PATCH, VALID, Teacher, as_tokens, resample_map

DEFAULT_WEIGHTS = "fastdepth"
SHORT_SIDE_PX = 224  # FastDepth was trained on squares of this size
GATE_PX = 384  # side of the squares that MOSAIC tells rooms by: as at 512 for 58 of 60 photos, in half the time
NEAREST_M = 0.1
FLIP_TOLERANCE = 0.15  # |log ratio| of the depth of a photo and of its mirror image
ROOM_M = (0.4, 10.0)  # the depth that FastDepth has learned
LEAST_SHARE = 0.5  # of a cell's pixels


def as_square(images: torch.Tensor) -> torch.Tensor:
    """images (B, 3, H, W) resized to squares, as in FastDepth's training, whatever their shape; antialiased."""
    size = (SHORT_SIDE_PX, SHORT_SIDE_PX)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def sure_depth(plain: torch.Tensor, mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth of a photo, and of its mirror image turned back, of one shape -> geometric mean, and where it is sure."""
    plain, mirrored = plain.clamp(min=1e-3), mirrored.clamp(min=1e-3)
    depth = (plain * mirrored).sqrt()
    sure = ((plain / mirrored).log().abs() < FLIP_TOLERANCE) & (depth > ROOM_M[0]) & (depth < ROOM_M[1])
    return depth, sure


class FastDepthTeacher(Teacher):
    """The logarithm of depth in metres and the 16 features of the last decoder stage: 17 channels. Always float32.

    The image is resized (bilinear, antialiased) to a short side of about 224 px; maps are the mean of the image's and
    its mirror image's, averaged over the student's cells. A token is valid in rooms, where half its pixels are sure.
    """

    name = "fastdepth"
    widths = {CLS: 1 + DECODER[-1], PATCH: 1 + DECODER[-1]}  # noqa: RUF012 (a constant of the class)
    note = "a CNN without CLS: the mean of its patches stands for it"

    def __init__(self, net: FastDepth, source: Source, rooms: mosaic.MosaicTeacher) -> None:
        super().__init__()
        self.net, self.source = net, source
        self.rooms, self.gate = rooms, rooms.source

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        scale = SHORT_SIDE_PX / min(images.shape[-2:])
        size = [max(1, round(side * scale / STRIDE)) * STRIDE for side in images.shape[-2:]]
        with torch.autocast(images.device.type, enabled=False):
            images = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
            (plain, maps), (mirrored, others) = self._maps(images), self._maps(images.flip(-1))
            joined = resample_map((maps + others.flip(-1)) / 2, grid)
            _, sure = sure_depth(plain, mirrored.flip(-1))
            shares = resample_map(sure[:, None].float(), grid)
        rooms = torch.tensor([not is_outdoor(logits, CLASSES) for logits in self.rooms.logits(images, GATE_PX)])
        valid = (shares >= LEAST_SHARE).float() * rooms.to(shares.device)[:, None, None, None]
        return {CLS: joined.mean((2, 3)), PATCH: as_tokens(joined), VALID: valid.flatten(1)}

    def _maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth (B, H, W) in metres, and (B, 17, H/2, W/2): log-depth and features."""
        found = self.net(images)
        log_depth = F.avg_pool2d(found.depth[:, None].clamp(min=NEAREST_M).log(), 2)
        return found.depth, torch.cat([log_depth, found.features], 1)


def load_network(weights: str, device: torch.device) -> tuple[FastDepth, Source]:
    """The network from the registry name `fastdepth`, or from the file `weights`, float32, and its source."""
    file = open_third_party(weights, "fastdepth")
    net = FastDepth()
    file.load_into(net, "FastDepth")
    return net.to(device).eval().requires_grad_(False), file.source


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """FastDepth (`load_network`), always in float32, with the registry's MOSAIC in `dtype` as its gate."""
    return FastDepthTeacher(*load_network(weights, device), mosaic.load(mosaic.DEFAULT_WEIGHTS, device, dtype))
