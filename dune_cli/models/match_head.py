"""The head of the matcher `dune`: XFeat's keypoints and descriptors, features of the encoder around them, LightGlue.

At the start of training it is XFeat + LighterGlue: all that is added enters by weights of zero. Without context and
refinement, with XFeat's backbone in it, it is the matcher `xfeat-lighterglue`. Source of the keypoints: Potje et al.,
"XFeat", CVPR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.lightglue import Assignment, LightGlue, LightGlueConfig, normalised
from dune_cli.models.stems import BasicLayer, Maps, XFeatStem
from dune_cli.provenance import Source

CELL = 8  # pixels of a cell's side
WINDOW = 5  # pixels of the side that a keypoint is the maximum of
CHANNELS = {"xfeat4": 24, "lite4": 24, "lite8": 48, "tokens": 256}  # what the context can be made of
TAPS = 3  # samples of a fine window's side
REACH_PX = 2.0  # the furthest that a keypoint may be moved


def heatmap_of(logits: torch.Tensor) -> torch.Tensor:
    """Keypoint logits (B, 65, h, w) of 8 x 8 cells, the last one for "none" -> probabilities (B, 1, 8 h, 8 w)."""
    return F.pixel_shuffle(logits.softmax(dim=1)[:, : CELL * CELL], CELL)


def detect(heatmap: torch.Tensor, reliability: torch.Tensor, threshold: float, count: int) -> torch.Tensor:
    """The best maxima of a heatmap (1, 1, H, W) above `threshold`: whole pixels (N, 2), x and y, best first.

    They are ranked by heatmap times reliability (1, 1, h, w), as published; N is at most `count`.
    """
    peaks = heatmap == F.max_pool2d(heatmap, WINDOW, stride=1, padding=WINDOW // 2)
    xy = (peaks & (heatmap > threshold))[0, 0].nonzero().flip(1)
    scores = heatmap[0, 0, xy[:, 1], xy[:, 0]]
    grid = published_grid(xy, (heatmap.shape[-1], heatmap.shape[-2]))
    scores = scores * F.grid_sample(reliability, grid, align_corners=False)[0, 0, :, 0]
    return xy[scores.topk(min(count, len(scores))).indices]


def centre_of_mass(heatmap: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """Pixels (N, 2) whole -> float32, moved to the centre of mass of the heatmap (1, 1, H, W) in their window.

    Published keypoints are whole pixels. This lowers the median error of matches under known homographies from 0.57 to
    0.45 px (512-px photos enlarged to 960).
    """
    reach = WINDOW // 2
    steps = torch.arange(-reach, reach + 1, device=heatmap.device)
    padded = F.pad(heatmap[0, 0], (reach,) * 4)
    window = padded[xy[:, 1, None, None] + reach + steps[:, None], xy[:, 0, None, None] + reach + steps]
    total = window.sum(dim=(1, 2))
    offset = torch.stack([(window * steps).sum(dim=(1, 2)), (window * steps[:, None]).sum(dim=(1, 2))], dim=1)
    return xy + offset / total[:, None]


def published_grid(xy: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels (N, 2) of an image of `size` (width, height) -> grid (1, N, 1, 2) as XFeat's descriptors are sampled.

    As in its training: positions over (side - 1), maps aligned by their pixels' edges.
    """
    width, height = size
    return (2 * xy / torch.tensor([width - 1, height - 1], device=xy.device) - 1)[None, :, None]


def descriptors_at(descriptors: torch.Tensor, xy: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """XFeat's descriptor map (1, 64, h, w) at keypoints (N, 2) of an image of `size`: unit vectors (N, 64)."""
    grid = published_grid(xy, size)
    sampled = F.grid_sample(F.normalize(descriptors, dim=1), grid, mode="bicubic", align_corners=False)
    return F.normalize(sampled[0, :, :, 0].T, dim=1)


def values_at(values: torch.Tensor, xy: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map (1, C, h, w) of an image at its pixels (..., 2), bilinearly -> (..., C).

    `size` (width, height) is that of the image that the pixels count in, whatever size the map was made at.
    """
    grid = 2 * (xy + 0.5) / torch.tensor(size, device=xy.device) - 1
    sampled = F.grid_sample(values, grid.reshape(1, -1, 1, 2), padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0].T.reshape(*xy.shape[:-1], values.shape[1])


@dataclass(frozen=True)
class MatchHeadConfig:
    """Sizes and settings, which the head's file carries.

    context: names of CHANNELS. fine: width of the refinement (0: there is none). long_side_px: of the image that
    keypoints are found in. context_px: of the one that the encoder's tokens and finer maps are made from. Keypoints
    below `detection_threshold` and matches below `match_threshold` are left out; at most `max_keypoints` are kept.
    """

    context: tuple[str, ...] = ("xfeat4", "lite4", "lite8", "tokens")
    glue: LightGlueConfig = field(default_factory=LightGlueConfig)
    fine: int = 32
    long_side_px: int = 960
    context_px: int = 448
    max_keypoints: int = 2048
    detection_threshold: float = 0.05
    match_threshold: float = 0.1

    @property
    def split(self) -> list[int]:
        """Channels of a keypoint before any trained layer: descriptor, each of the context's, fine window."""
        window = TAPS * TAPS * CHANNELS["xfeat4"] if self.fine else 0
        return [self.glue.inputs, *(CHANNELS[name] for name in self.context), window]


@dataclass(frozen=True)
class KeypointFeatures:
    """Keypoints of one image. xy (N, 2) pixels, centres at integers; values (N, C); size (width, height) in pixels."""

    xy: torch.Tensor
    values: torch.Tensor
    size: tuple[int, int]


class Detector(nn.Module):
    """XFeat's keypoint and reliability heads; published names and weights, never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.heatmap_head = nn.Sequential(BasicLayer(64, 64, 1), BasicLayer(64, 64, 1), nn.Conv2d(64, 1, 1))
        self.keypoint_head = nn.Sequential(*(BasicLayer(64, 64, 1) for _ in range(3)), nn.Conv2d(64, 65, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Detector:
        return super().train(False)

    def forward(self, images: torch.Tensor, eighth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W) in [0, 1], descriptors (B, 64, H/8, W/8) -> heatmap (B, 1, H, W), reliability."""
        cells = F.pixel_unshuffle(self.norm(images.mean(1, keepdim=True)), 8)
        return heatmap_of(self.keypoint_head(cells)), self.heatmap_head(eighth).sigmoid()


class Context(nn.Module):
    """One kind of the encoder's features, to the matcher's width; zero until it is trained."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.proj = nn.Linear(channels, width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.proj(self.norm(values))


class Refinement(nn.Module):
    """How far to move both points of a match, from the fine windows at both. The same network for either direction."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.down = nn.Linear(channels, width)
        self.mlp = nn.Sequential(nn.Linear(2 * width, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 2))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """Fine windows (N, channels) -> (N, width)."""
        return self.down(self.norm(windows))

    def forward(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Embedded windows (K, width) of a match's point and of its partner -> pixels (K, 2) to move the point by."""
        return REACH_PX * self.mlp(torch.cat([own, other], -1)).tanh()


class MatchHead(nn.Module):
    """Maps of two images to matches: `extract` once an image, `embed` once an image, `match` once a pair.

    backbone: whether it has XFeat's own (`xfeat`), so that it needs no encoder.
    """

    source = Source("none")

    def __init__(self, config: MatchHeadConfig, backbone: bool = False) -> None:
        super().__init__()
        self.config = config
        self.xfeat = XFeatStem() if backbone else None
        self.detector = Detector()
        self.glue = LightGlue(config.glue)
        self.context = nn.ModuleDict({name: Context(CHANNELS[name], config.glue.width) for name in config.context})
        self.refinement = Refinement(config.split[-1], config.fine) if config.fine else None

    @torch.no_grad()
    def extract(self, images: torch.Tensor, xfeat: Maps, context: dict[str, torch.Tensor]) -> KeypointFeatures:
        """Keypoints of one image (1, 3, H, W) in [0, 1] with what is known of each, before any trained layer.

        xfeat: the stem's part `xfeat` of this image. context: the context's maps (1, C, h, w) by name, of the same
        photo at any size; "xfeat4" is taken from `xfeat`. Sides are multiples of 32.
        """
        size = images.shape[-1], images.shape[-2]
        heatmap, reliability = self.detector(images, xfeat[8])
        whole = detect(heatmap, reliability, self.config.detection_threshold, self.config.max_keypoints)
        xy = centre_of_mass(heatmap, whole)
        maps = {**context, "xfeat4": xfeat[4]}
        parts = [descriptors_at(xfeat[8], whole, size)]
        parts += [values_at(maps[name], xy, size) for name in self.config.context]
        if self.refinement is not None:
            steps = torch.arange(TAPS, device=xy.device) - (TAPS - 1) / 2
            grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) * 2
            parts.append(values_at(xfeat[4], xy[:, None, None] + grid, size).flatten(1))
        return KeypointFeatures(xy, torch.cat(parts, 1), size)

    def embed(self, features: KeypointFeatures) -> KeypointFeatures:
        """A keypoint's values as the matcher and the refinement take them: (N, width + fine)."""
        descriptor, *around, window = features.values.float().split(self.config.split, 1)
        x = self.glue.input_proj(descriptor)
        for layer, values in zip(self.context.values(), around):
            x = x + layer(values)
        if self.refinement is not None:
            x = torch.cat([x, self.refinement.embed(window)], 1)
        return KeypointFeatures(features.xy, x, features.size)

    def assign(self, embedded0: KeypointFeatures, embedded1: KeypointFeatures) -> list[Assignment]:
        """Every layer's assignment, for training."""
        return self.glue(*self._inputs(embedded0, embedded1))

    def match(
        self, embedded0: KeypointFeatures, embedded1: KeypointFeatures
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Matches: index0, index1 (K,), probability (K,)."""
        return self.glue.match(*self._inputs(embedded0, embedded1), self.config.match_threshold)

    def offsets(
        self, embedded0: KeypointFeatures, embedded1: KeypointFeatures, index0: torch.Tensor, index1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (K, 2) to move the points of image 0 and of image 1 by. ValueError without a refinement."""
        if self.refinement is None:
            raise ValueError("this head has no refinement: its config's `fine` is 0")
        fine0, fine1 = (
            image.values[index, self.config.glue.width :] for image, index in ((embedded0, index0), (embedded1, index1))
        )
        return self.refinement(fine0, fine1), self.refinement(fine1, fine0)

    def _inputs(self, embedded0: KeypointFeatures, embedded1: KeypointFeatures) -> tuple[torch.Tensor, ...]:
        width = self.config.glue.width
        positions = (normalised(image.xy.float(), image.size) for image in (embedded0, embedded1))
        return embedded0.values[:, :width], embedded1.values[:, :width], *positions
