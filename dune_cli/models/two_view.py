"""Two photos in, points in the first camera's frame, confidences and descriptors out (spec 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.croco import CrocoEncoder
from dune_cli.models.decoder import TwoViewDecoder
from dune_cli.models.dpt import DptConfig, DptHead
from dune_cli.models.local_features import LocalFeatures
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

STANDARD_SIZE_PX = {16: 512, 14: 518}


@dataclass(frozen=True)
class ConfidenceMode:
    """confidence = minimum + exp(c), at most maximum."""

    minimum: float
    maximum: float = float("inf")

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        return (self.minimum + raw.exp()).clamp(max=self.maximum)


@dataclass(frozen=True)
class HeadConfig:
    """One view's head. `own_descriptor_confidence`: descriptors have a channel of their own for it (two_confs)."""

    points: DptConfig
    local_inputs: int
    local_hidden: int
    descriptor_channels: int
    own_descriptor_confidence: bool
    confidence: ConfidenceMode
    descriptor_confidence: ConfidenceMode


@dataclass(frozen=True)
class ViewFeatures:
    """One batch of views after the encoder: tokens (B, N, E) on grid (h, w)."""

    tokens: torch.Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class TwoViewOutput:
    """points1, points2 (B, H, W, 3) both in camera 1's frame; confidence1/2 (B, H, W) from the confidence mode's
    minimum (1) up; descriptors1/2 (B, H, W, C) of unit length; descriptor_confidence1/2 (B, H, W). None: not asked for.
    """

    points1: torch.Tensor | None
    points2: torch.Tensor | None
    confidence1: torch.Tensor | None
    confidence2: torch.Tensor | None
    descriptors1: torch.Tensor | None
    descriptors2: torch.Tensor | None
    descriptor_confidence1: torch.Tensor | None
    descriptor_confidence2: torch.Tensor | None


@dataclass(frozen=True)
class _ViewOutput:
    points: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    descriptors: torch.Tensor | None = None
    descriptor_confidence: torch.Tensor | None = None


class DunePatches(nn.Module):
    """A DUNE encoder as the decoder sees it: patch tokens before the final norm, then a LayerNorm of their own."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.norm = nn.LayerNorm(vit.width, 1e-5)

    @property
    def patch(self) -> int:
        return self.vit.patch

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """images (B, 3, H, W) -> tokens (B, N, D) and their grid."""
        tokens = self.vit(images, norm=False)
        return self.norm(tokens.patches), tokens.grid


class ViewHead(nn.Module):
    """Point map, confidence and descriptors of one view."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.points = DptHead(config.points)
        channels = config.descriptor_channels + config.own_descriptor_confidence
        self.local = LocalFeatures(config.local_inputs, config.local_hidden, channels, config.points.patch)

    def forward(
        self,
        items: dict[int, torch.Tensor],
        hooks: tuple[int, ...],
        grid: tuple[int, int],
        descriptors: bool,
        points: bool,
    ) -> _ViewOutput:
        """items of the decoder's list; `hooks` are the four that feed the point map."""
        config = self.config
        position = confidence = described = described_confidence = raw = None
        if points or (descriptors and not config.own_descriptor_confidence):
            raw = self.points([items[hook] for hook in hooks], grid).permute(0, 2, 3, 1)
        if points:
            position, confidence = _positions(raw[..., :3]), config.confidence(raw[..., 3])
        if descriptors:
            local = self.local(items[0], items[hooks[-1]], grid)
            described = F.normalize(local[..., : config.descriptor_channels], dim=-1)
            confidence_raw = local[..., -1] if config.own_descriptor_confidence else raw[..., 3]
            described_confidence = config.descriptor_confidence(confidence_raw)
        return _ViewOutput(position, confidence, described, described_confidence)


def _positions(raw: torch.Tensor) -> torch.Tensor:
    """raw (..., 3) -> points: the direction of raw, at distance expm1(|raw|)."""
    distance = torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
    return raw * (distance.expm1() / distance.clamp(min=1e-8))


class TwoViewModel(nn.Module):
    """Encoder, decoder and a head a view. Runs where its weights are; a loaded model needs no gradients."""

    source = Source("none")

    def __init__(self, encoder: CrocoEncoder | DunePatches, decoder: TwoViewDecoder, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head1, self.head2 = ViewHead(head), ViewHead(head)
        depth = decoder.config.depth
        self.hooks = (0, depth * 2 // 4, depth * 3 // 4, depth)

    @property
    def patch(self) -> int:
        return self.encoder.patch

    @property
    def size(self) -> int:
        """The standard long side in pixels."""
        return STANDARD_SIZE_PX.get(self.patch, round(512 / self.patch) * self.patch)

    @property
    def crop_square_to_4_3(self) -> bool:
        """Whether the published preparation crops square images to 4:3 (only with MASt3R's own encoder)."""
        return isinstance(self.encoder, CrocoEncoder)

    def encode(self, images: torch.Tensor) -> ViewFeatures:
        """images (B, 3, H, W) RGB in [0, 1] -> the features that `decode` takes; one pass serves many pairs."""
        return ViewFeatures(*self.encoder(images))

    def decode(
        self, view1: ViewFeatures, view2: ViewFeatures, descriptors: bool = True, points: bool = True
    ) -> TwoViewOutput:
        """Features of both views (same B, their grids may differ) -> TwoViewOutput."""
        if len(view1.tokens) != len(view2.tokens):
            raise ValueError(f"both views need one batch size; received {len(view1.tokens)} and {len(view2.tokens)}")
        keep = self.hooks if points or not self.head1.config.own_descriptor_confidence else self.hooks[-1:]
        items1, items2 = self.decoder(view1.tokens, view1.grid, view2.tokens, view2.grid, keep)
        one = self.head1(items1, self.hooks, view1.grid, descriptors, points)
        two = self.head2(items2, self.hooks, view2.grid, descriptors, points)
        return TwoViewOutput(
            points1=one.points,
            points2=two.points,
            confidence1=one.confidence,
            confidence2=two.confidence,
            descriptors1=one.descriptors,
            descriptors2=two.descriptors,
            descriptor_confidence1=one.descriptor_confidence,
            descriptor_confidence2=two.descriptor_confidence,
        )

    def forward(
        self, images1: torch.Tensor, images2: torch.Tensor, descriptors: bool = True, points: bool = True
    ) -> TwoViewOutput:
        """images1, images2 (B, 3, H, W) RGB in [0, 1] -> TwoViewOutput; the views' sizes may differ.

        What is not asked for is not computed. Raises ValueError with the sizes when a side is no patch multiple.
        """
        if images1.shape == images2.shape:
            tokens, grid = self.encoder(torch.cat([images1, images2]))
            tokens1, tokens2 = tokens.chunk(2)
            view1, view2 = ViewFeatures(tokens1, grid), ViewFeatures(tokens2, grid)
        else:
            view1, view2 = self.encode(images1), self.encode(images2)
        return self.decode(view1, view2, descriptors, points)
