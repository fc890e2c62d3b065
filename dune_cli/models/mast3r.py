"""MASt3R and DUNE + MASt3R (docs/models/mast3r.md): two photos in, points in the first camera's frame out.

Parts: MASt3R's own encoder (a ViT with rotary positions, without CLS, registers and LayerScale), the two-view decoder,
whose two towers attend to each other, and a head a view (points, confidence, descriptors). Heads run in float32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.blocks import Block, DecoderBlock, Rope2d
from dune_cli.models.dpt import DptConfig, DptHead
from dune_cli.models.patch_embed import HALF, PatchEmbed, grid_of, normalise
from dune_cli.models.precision import TrunkLinear
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

STANDARD_SIZE_PX = {16: 512, 14: 518}  # long side of the network input, by patch size
Grid = tuple[int, int]


@dataclass(frozen=True)
class CrocoConfig:
    """Sizes of the encoder; `rope_base` is the base of its frequencies."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    rope_base: float


class CrocoEncoder(nn.Module):
    """Images in [0, 1] to patch tokens after the final norm; normalises for itself, (x - 0.5) / 0.5."""

    def __init__(self, config: CrocoConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.hidden, layer_scale=False) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, 1e-6)
        self.rope = Rope2d(config.width // config.heads, config.rope_base)

    @property
    def patch(self) -> int:
        return self.config.patch

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """images (B, 3, H, W) -> tokens (B, N, D) and their grid (h, w). ValueError if a side is no patch multiple."""
        grid = grid_of(images, self.patch)
        images = images.to(self.norm.weight.device, torch.float32)
        x = self.patch_embed(normalise(images, HALF, HALF))
        rotation = self.rope(grid, x.device)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x), grid


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. `encoder_width` is what comes in; `rope_base` the base of the rotary positions."""

    encoder_width: int
    width: int
    depth: int
    heads: int
    hidden: int
    rope_base: float


class TwoViewDecoder(nn.Module):
    """Both views' encoder tokens to both views' token lists."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TrunkLinear(config.encoder_width, config.width)
        self.blocks1, self.blocks2 = (
            nn.ModuleList(DecoderBlock(config.width, config.heads, config.hidden) for _ in range(config.depth))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(config.width, 1e-6)
        self.rope = Rope2d(config.width // config.heads, config.rope_base)

    def forward(
        self, tokens1: torch.Tensor, grid1: Grid, tokens2: torch.Tensor, grid2: Grid, keep: Collection[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """tokens1 (B, N, E), tokens2 (B, M, E) -> the items `keep` of each view's list.

        Item 0 is the encoder's tokens, item i the output of block i, the last one after the final norm.
        """
        items: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]] = ({0: tokens1}, {0: tokens2})
        x1, x2 = self.embed(tokens1).float(), self.embed(tokens2).float()
        rotation1, rotation2 = (self.rope(grid, x1.device) for grid in (grid1, grid2))
        for index, (block1, block2) in enumerate(zip(self.blocks1, self.blocks2), 1):
            x1, x2 = block1(x1, x2, rotation1, rotation2), block2(x2, x1, rotation2, rotation1)
            if index in keep:
                last = index == len(self.blocks1)
                items[0][index], items[1][index] = (self.norm(x1), self.norm(x2)) if last else (x1, x2)
        return items


class DescriptorHead(nn.Module):
    """Encoder and decoder tokens, concatenated, to `channels` values a pixel: an MLP per token and a pixel shuffle."""

    def __init__(self, inputs: int, hidden: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, channels * patch * patch)

    def forward(self, first: torch.Tensor, last: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """first (B, N, E), last (B, N, D) -> (B, h·patch, w·patch, channels)."""
        x = self.fc2(F.gelu(self.fc1(torch.cat([first, last], -1))))
        p = self.patch
        cells = x.unflatten(-1, (-1, p, p)).unflatten(1, grid)  # (B, h, w, C, p, p)
        return cells.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)


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
        self.local = DescriptorHead(config.local_inputs, config.local_hidden, channels, config.points.patch)

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
        batches = view1.tokens.shape[0], view2.tokens.shape[0]  # open in an export, where len() would fix them
        if batches[0] != batches[1]:
            raise ValueError(f"both views need one batch size; received {batches[0]} and {batches[1]}")
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


class TwoViewDepth(nn.Module):
    """Depth of single images by a two-view model, given each image twice: the first point map is in its own camera."""

    source = Source("none")

    def __init__(self, model: TwoViewModel) -> None:
        super().__init__()
        self.model = model

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result."""
        return [self.source]

    def points(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W), sides multiples of the patch -> points (B, H, W, 3) in metres, confidence (B, H, W).

        Raises ValueError with the sizes when a side is no patch multiple.
        """
        model = self.model
        view = model.encode(images)
        items, _ = model.decoder(view.tokens, view.grid, view.tokens, view.grid, model.hooks)
        output = model.head1(items, model.hooks, view.grid, descriptors=False, points=True)
        return output.points, output.confidence

    def forward(self, images: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], any sides -> depth z (B, H, W) in metres.

        Images whose sides are patch multiples up to the model's standard size are taken as they are; others are resized
        to the nearest such sides (bilinear, antialiased) and the depth back. `flip`: the mean with the mirrored
        prediction of the mirrored image.
        """
        if flip:
            return (self(images) + self(images.flip(-1)).flip(-1)) / 2
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
        size, network_size = tuple(images.shape[-2:]), self._network_size(*images.shape[-2:])
        if size == network_size:
            return self.points(images)[0][..., 2]
        small = F.interpolate(images.float(), size=network_size, mode="bilinear", align_corners=False, antialias=True)
        depth = self.points(small.clamp(0, 1))[0][..., 2]
        return F.interpolate(depth[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        patch = self.model.patch
        scale = min(1.0, self.model.size / max(height, width))
        return tuple(max(1, round(side * scale / patch)) * patch for side in (height, width))
