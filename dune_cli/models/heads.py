"""Heads for depth, segmentation and classification on the features of any encoder. Float32.

A head reads named features, which one pass of the encoder gives:

- `tokensN`: patch tokens of block N (from 0) after the final norm, as a map on the patch grid.
- `clsN`: the CLS token of block N, one vector an image.
- `PARTS`, such as `lite16`: a map of `dune-mini`'s stem, named by its part and stride (models/stems.py).
- `mean:NAME`: the mean of the map NAME over the image, one vector.

Maps finer than the patch grid are named by their scale: the number of cells along a patch's side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.models.dpt import PointConv2d
from dune_cli.models.dune_mini import MiniEncoder
from dune_cli.models.efficientnet_lite import LiteNetwork
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.stems import LITE_BLOCKS
from dune_cli.provenance import Source

Task = Literal["depth", "segmentation", "classification"]
Kind = Literal["linear", "mlp", "dpt", "efficientnet-lite2"]
Features = Mapping[str, torch.Tensor]

TASKS: tuple[Task, ...] = ("depth", "segmentation", "classification")
DENSE_KINDS: tuple[Kind, ...] = ("linear", "mlp", "dpt")
GLOBAL_KINDS: tuple[Kind, ...] = ("linear", "mlp", "efficientnet-lite2")
MLP_HIDDEN = 256
LARGEST = 8.0  # standard deviations; what lies beyond is clamped
SCALES = (1, 2, 4)  # cells along a patch's side: strides 16, 8 and 4 of a patch of 16 px
MEAN = "mean:"
_NAME = re.compile(r"(?P<kind>tokens|cls)(?P<block>\d+)|(?P<part>[a-z]+?)(?P<stride>\d+)")


@dataclass(frozen=True)
class Feature:
    """An input of a head: its name, its channels, and its scale (0: one vector an image)."""

    name: str
    channels: int
    scale: int


@dataclass(frozen=True)
class FeatureHeadConfig:
    """Sizes of a head.

    outputs: channels of the result (1 for depth, else the number of classes). widths: channels at scales 1, 2 and 4
    (`dpt`). place: rows and columns of the learned map of places, which is resampled to the image's grid (0, 0: none).
    upsampling: factor of a learned convex upsampling after scale 4. canonical_focal_px: the focal length in pixels of
    the network's input for which a depth head predicts.
    """

    task: Task
    kind: Kind
    features: tuple[Feature, ...]
    outputs: int
    widths: tuple[int, int, int] = (96, 64, 32)
    place: tuple[int, int] = (12, 16)
    upsampling: int = 1
    canonical_focal_px: float = 300.0

    def __post_init__(self) -> None:
        kinds = GLOBAL_KINDS if self.task == "classification" else DENSE_KINDS
        if self.task not in TASKS or self.kind not in kinds:
            raise ValueError(f"a head of the kind {self.kind!r} for {self.task!r}; allowed: {', '.join(kinds)}")
        if not self.features or self.outputs < 1 or self.upsampling < 1 or min(self.widths) < 8:
            raise ValueError(f"a head needs features, outputs and widths of 8 or more; received {self}")
        strange = [f.name for f in self.features if f.scale not in (0, *SCALES)]
        if strange:
            raise ValueError(f"{strange[0]} has a scale that no head takes; allowed: {', '.join(map(str, SCALES))}")

    @property
    def output_scale(self) -> int:
        """Cells of the result along a patch's side; 0 for one vector an image."""
        if self.task == "classification":
            return 0
        return SCALES[-1] * self.upsampling if self.kind == "dpt" else 1


# Features out of an encoder.


def bare(encoder: nn.Module) -> nn.Module:
    """The network under the projectors of a distilled encoder."""
    return encoder.vit if isinstance(encoder, DistilledEncoder) else encoder


def block_count(encoder: nn.Module) -> int:
    """How many transformer blocks the encoder has; 1 for one that gives its last block alone."""
    return len(getattr(bare(encoder), "blocks", ())) or 1


def extract(encoder: nn.Module, images: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """images (B, 3, H, W) RGB in [0, 1], sides multiples of the patch -> features by name, float32, in one pass.

    Maps are (B, C, s·h, s·w) on the patch grid (h, w) at scale s, vectors (B, C). Raises ValueError for a name that the
    encoder does not give, and for sides that are no multiples of the patch.
    """
    network = bare(encoder)
    parsed = {name.removeprefix(MEAN): _NAME.fullmatch(name.removeprefix(MEAN)) for name in names}
    wrong = [name for name, match in parsed.items() if match is None]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no feature; allowed: {', '.join(feature_names(encoder))}")
    count = block_count(encoder)
    layers = sorted({int(match["block"]) for match in parsed.values() if match["kind"]} or {count - 1})
    if layers[-1] >= count:
        raise ValueError(f"block {layers[-1]} was asked for; the encoder has the blocks 0 to {count - 1}")
    images = images.to(next(network.parameters()).device)
    stem: dict[str, torch.Tensor] = {}
    if hasattr(network, "levels"):
        maps, tokens = network.levels(images, layers)
        stem = {f"{part}{stride}": value for part, by in maps.items() for stride, value in by.items()}
    elif hasattr(network, "intermediate"):
        tokens = network.intermediate(images, layers)
    else:
        tokens = [network(images)]
    of_block = dict(zip(layers, tokens))
    found = {name: _feature(name, match, of_block, stem).float() for name, match in parsed.items()}
    return {name: found[name] if name in found else found[name.removeprefix(MEAN)].mean((2, 3)) for name in names}


def _feature(
    name: str, match: re.Match[str], of_block: Mapping[int, Tokens], stem: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    if match["kind"]:
        tokens = of_block[int(match["block"])]
        return tokens.cls if match["kind"] == "cls" else tokens.map().permute(0, 3, 1, 2)
    if name not in stem:
        raise ValueError(f"{name!r} is no feature of this encoder; its stem gives: {', '.join(stem) or 'none'}")
    return stem[name]


def feature_names(encoder: nn.Module) -> list[str]:
    """The names that `extract` takes for this encoder, those of means left out."""
    network, count = bare(encoder), block_count(encoder)
    names = [f"{kind}{block}" for block in range(count) for kind in ("tokens", "cls")]
    if isinstance(network, MiniEncoder):
        patch = network.patch
        for name, part in network.stem.items():
            names += [f"{name}{stride}" for stride in part.channels if patch // stride in SCALES]
    return names


@torch.no_grad()
def measure(encoder: nn.Module, names: Sequence[str]) -> tuple[Feature, ...]:
    """Channels and scale of each named feature, from one pass over a small image. ValueError as `extract`."""
    device = next(encoder.parameters()).device
    patch = encoder.patch
    features = extract(encoder, torch.full((1, 3, 2 * patch, 2 * patch), 0.5, device=device), names)
    return tuple(
        Feature(name, value.shape[1], value.shape[-1] // 2 if value.ndim == 4 else 0)
        for name, value in features.items()
    )


def default_features(encoder: nn.Module, task: Task, kind: Kind) -> tuple[str, ...]:
    """The features that a head of this kind reads where none are named.

    A `dpt` head reads four evenly spaced blocks of a ViT; of `dune-mini` two blocks and every stem map. Other dense
    heads read the last block. Heads for classes read its CLS token and the mean of its patches, as DINOv2's do.
    """
    network, count = bare(encoder), block_count(encoder)
    last = count - 1
    if kind == "efficientnet-lite2":
        return ("lite16",)
    mini = isinstance(network, MiniEncoder)
    if task == "classification":
        stem = ("mean:lite16",) if mini and "lite" in network.stem else ()
        return (f"cls{last}", f"{MEAN}tokens{last}", *stem)
    if kind != "dpt":
        return (f"tokens{last}",)
    if mini:
        maps = tuple(name for name in feature_names(encoder) if not name.startswith(("tokens", "cls")))
        return (f"tokens{last // 2}", f"tokens{last}", f"cls{last}", *maps)
    blocks = dict.fromkeys(max(0, round((step + 1) * count / 4) - 1) for step in range(4))
    return (*(f"tokens{block}" for block in blocks), f"cls{last}")


# Networks from features to results.


class FeatureNorm(nn.Module):
    """Standardises a feature by fixed statistics a channel, which the trainer measures; clamps outliers."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return ((x - self.mean.view(shape)) * self.scale.view(shape)).clamp(-LARGEST, LARGEST)


class FeatureHead(nn.Module):
    """Base of the heads: the norms of its features, by `norm_key`."""

    def __init__(self, config: FeatureHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norms = nn.ModuleDict({norm_key(f.name): FeatureNorm(f.channels) for f in config.features})

    def normed(self, features: Features, scale: int) -> list[torch.Tensor]:
        """The features of one scale, standardised, in the config's order."""
        return [self.norms[norm_key(f.name)](features[f.name]) for f in self.config.features if f.scale == scale]

    def channels(self, scale: int) -> int:
        """Channels of all features of one scale."""
        return sum(f.channels for f in self.config.features if f.scale == scale)


def norm_key(name: str) -> str:
    """The name of a feature among a head's norms: a module's name can have no colon."""
    return name.replace(":", "_")


class PointwiseHead(FeatureHead):
    """`linear` and `mlp` at each cell of the patch grid; finer maps are averaged over it, vectors repeated."""

    def __init__(self, config: FeatureHeadConfig) -> None:
        super().__init__(config)
        inputs = sum(f.channels for f in config.features)
        self.hidden = PointConv2d(inputs, MLP_HIDDEN) if config.kind == "mlp" else None
        self.project = PointConv2d(MLP_HIDDEN if self.hidden else inputs, config.outputs)

    def forward(self, features: Features) -> torch.Tensor:
        """Features by name -> (B, outputs, h, w) on the patch grid."""
        maps = [
            F.avg_pool2d(value, scale) if scale > 1 else value
            for scale in SCALES
            for value in self.normed(features, scale)
        ]
        grid = maps[0].shape[-2:]
        maps += [value[:, :, None, None].expand(-1, -1, *grid) for value in self.normed(features, 0)]
        x = torch.cat(maps, 1)
        return self.project(x if self.hidden is None else F.gelu(self.hidden(x)))


class HeadUnit(nn.Module):
    """x + conv(relu(conv(relu(norm(x))))): a residual unit of 3x3 convolutions with a group norm before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(self.norm(x)))))


class PyramidHead(FeatureHead):
    """`dpt`: coarse to fine with a skip at each scale, after Ranftl et al., "Vision Transformers for Dense Prediction".

    Scale 1: all its maps, a learned map of places and the photo's mean, two residual units. Scales 2 and 4: the path,
    enlarged, plus that scale's maps, and one unit each. Then a convolution to the outputs.
    """

    def __init__(self, config: FeatureHeadConfig) -> None:
        super().__init__(config)
        c1, c2, c4 = config.widths
        if not self.channels(1):
            raise ValueError("a dpt head needs a map on the patch grid, such as tokens of a block")
        self.enter1 = nn.Conv2d(self.channels(1), c1, 1)
        self.enter2 = nn.Conv2d(self.channels(2), c2, 1) if self.channels(2) else None
        self.enter4 = nn.Conv2d(self.channels(4), c4, 1) if self.channels(4) else None
        self.place = nn.Parameter(torch.zeros(1, c1, *config.place)) if min(config.place) else None
        self.whole = nn.Linear(c1 + self.channels(0), c1)
        self.units1 = nn.Sequential(HeadUnit(c1), HeadUnit(c1))
        self.down2, self.unit2 = nn.Conv2d(c1, c2, 1), HeadUnit(c2)
        self.down4, self.unit4 = nn.Conv2d(c2, c4, 1), HeadUnit(c4)
        self.out = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c4, c4, 3, padding=1), nn.ReLU(), nn.Conv2d(c4, config.outputs, 1)
        )
        self.weights = nn.Conv2d(c4, 9 * config.upsampling**2, 3, padding=1) if config.upsampling > 1 else None
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Features) -> torch.Tensor:
        """Features by name -> (B, outputs, s·h, s·w), s = config.output_scale."""
        x = self.enter1(torch.cat(self.normed(features, 1), 1))
        if self.place is not None:
            x = x + F.interpolate(self.place, size=x.shape[-2:], mode="bilinear", align_corners=False)
        whole = torch.cat([F.relu(x).mean((2, 3)), *self.normed(features, 0)], 1)
        x = self.units1(x + self.whole(whole)[:, :, None, None])
        x = _double(self.down2(x))
        if self.enter2 is not None:
            x = x + self.enter2(torch.cat(self.normed(features, 2), 1))
        x = _double(self.down4(self.unit2(x)))
        if self.enter4 is not None:
            x = x + self.enter4(torch.cat(self.normed(features, 4), 1))
        x = self.unit4(x)
        result = self.out(x)
        return result if self.weights is None else convex_upsample(result, self.weights(F.relu(x)))


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def convex_upsample(coarse: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """coarse (B, C, h, w), logits (B, 9·f², h, w) -> (B, C, f·h, f·w).

    Each fine value is a convex combination of the 3 x 3 coarse ones around it; edges stay sharp where one has all the
    weight (Z. Teed and J. Deng, "RAFT", ECCV 2020, section 3.3). The border is repeated.
    """
    batch, channels, height, width = coarse.shape
    factor = round((logits.shape[1] / 9) ** 0.5)
    weights = logits.view(batch, 1, 9, factor, factor, height, width).softmax(2)
    around = F.unfold(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3)
    around = around.view(batch, channels, 9, 1, 1, height, width)
    fine = (weights * around).sum(2)  # (B, C, f, f, h, w)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, factor * height, factor * width)


class GlobalHead(FeatureHead):
    """`linear` and `mlp` for whole images: all features, maps averaged over the image, to class logits."""

    def __init__(self, config: FeatureHeadConfig) -> None:
        super().__init__(config)
        inputs = sum(f.channels for f in config.features)
        self.hidden = nn.Linear(inputs, MLP_HIDDEN) if config.kind == "mlp" else None
        self.project = nn.Linear(MLP_HIDDEN if self.hidden else inputs, config.outputs)

    def forward(self, features: Features) -> torch.Tensor:
        """Features by name -> logits (B, outputs)."""
        vectors = [
            value.mean((2, 3)) if value.ndim == 4 else value
            for scale in (0, *SCALES)
            for value in self.normed(features, scale)
        ]
        x = torch.cat(vectors, 1)
        return self.project(x if self.hidden is None else F.gelu(self.hidden(x)))


class LiteClassifier(FeatureHead):
    """`efficientnet-lite2`: what follows the stem's part `lite` in EfficientNet-Lite2, to ImageNet's 1000 classes.

    Tan & Le, ICML 2019; the published network from stride 16 on, its parameters in timm's names.
    """

    def __init__(self, config: FeatureHeadConfig) -> None:
        super().__init__(config)
        self.norms = nn.ModuleDict()  # the published network takes the map as it is
        network = LiteNetwork(config.outputs)
        self.blocks = network.blocks[LITE_BLOCKS:]
        self.conv_head, self.bn2 = network.conv_head, network.bn2
        self.classifier = network.classifier

    def forward(self, features: Features) -> torch.Tensor:
        """{"lite16": (B, 120, h, w)} -> logits (B, outputs)."""
        x = features[self.config.features[0].name].contiguous(memory_format=torch.channels_last)
        return self.classifier(self.bn2(self.conv_head(self.blocks(x))).mean((2, 3)))


def build_head(config: FeatureHeadConfig) -> FeatureHead:
    """A head of these sizes with random weights."""
    if config.kind == "efficientnet-lite2":
        return LiteClassifier(config)
    if config.task == "classification":
        return GlobalHead(config)
    return PyramidHead(config) if config.kind == "dpt" else PointwiseHead(config)


# An encoder with its head.


@dataclass(frozen=True)
class HeadCard:
    """What a head's file says beside its weights.

    encoder, encoder_sha256: the file that its features come from. size_px: the length of a side of the square that has
    as many pixels as its training images. classes, palette (RGB): of class heads; empty where unknown. licence, data:
    texts. measured: numbers, such as the expected error of a depth head in rooms and outdoors.
    """

    encoder: str
    encoder_sha256: str
    size_px: int
    licence: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    data: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


class HeadedEncoder(nn.Module):
    """An encoder and a head. Runs where its weights are, without gradients once loaded.

    `scene`: a segmentation head of the same encoder, which says for a depth head what the pixels are; None without one.
    """

    source = Source("none")

    def __init__(self, encoder: nn.Module, head: FeatureHead, card: HeadCard) -> None:
        super().__init__()
        self.encoder, self.head, self.card = encoder, head, card
        self.scene: HeadedEncoder | None = None

    @property
    def config(self) -> FeatureHeadConfig:
        return self.head.config

    @property
    def sources(self) -> list[Source]:
        """The weights behind a result: the head's, the encoder's, and the scene head's."""
        return [self.source, self.encoder.source, *([self.scene.source] if self.scene is not None else [])]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.config.outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.card.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.card.palette

    @property
    def blocks(self) -> tuple[int, ...]:
        """The encoder's blocks that the head, and the scene head, read."""
        names = [feature.name.removeprefix(MEAN) for feature in self.config.features]
        matches = [_NAME.fullmatch(name) for name in names]
        own = {int(match["block"]) for match in matches if match is not None and match["kind"]}
        return tuple(sorted(own | set(self.scene.blocks if self.scene is not None else ())))

    def input_size(self, height: int, width: int, long_side_px: int | None = None) -> tuple[int, int]:
        """(height, width) of the network's input for an image: multiples of the patch, nearest to the image's shape.

        `long_side_px`: the longer side; without it the input has as many pixels as a training image.
        """
        return input_size(height, width, self.encoder.patch, self.card.size_px, long_side_px)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) RGB in [0, 1], sides multiples of the patch -> the head's own result.

        (B, outputs, s·H/patch, s·W/patch) of a dense head, s = config.output_scale; (B, outputs) for whole images.
        """
        return self.head(extract(self.encoder, images, [feature.name for feature in self.config.features]))

    def with_scene(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `forward`, and the scene head's result (None without one), by one pass of the encoder."""
        names = [feature.name for feature in self.config.features]
        scene = self.scene
        others = [feature.name for feature in scene.config.features] if scene is not None else []
        features = extract(self.encoder, images, list(dict.fromkeys(names + others)))
        return self.head(features), None if scene is None else scene.head(features)

    def metric_log_depth(self, result: torch.Tensor, focal_px: torch.Tensor | float) -> torch.Tensor:
        """A depth head's result (B, 1, h, w) for a camera: the logarithm of depth z in metres, of the same shape.

        focal_px: focal length in pixels of the network's input, a number or (B).
        """
        if self.config.task != "depth":
            raise ValueError(f"a head for {self.config.task} gives no depth")
        shift = focal_shift(focal_px, self.config.canonical_focal_px, result.device)
        return result + (shift[:, None] if shift.ndim else shift)

    def log_depth(self, images: torch.Tensor, focal_px: torch.Tensor | float) -> torch.Tensor:
        """The logarithm of depth z in metres (B, s·H/patch, s·W/patch). focal_px: of these images, (B) or a number."""
        return self.metric_log_depth(self(images), focal_px)[:, 0]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits of a dense head at the images' size (B, classes, H, W), of others (B, classes)."""
        result = self(images)
        if result.ndim == 2:
            return result
        return F.interpolate(result, size=images.shape[-2:], mode="bilinear", align_corners=False)


def focal_shift(focal_px: torch.Tensor | float, canonical_px: float, device: torch.device) -> torch.Tensor:
    """log(focal / canonical), (B, 1, 1) or a number: what turns canonical log-depth into that of a camera.

    Things look the same at f times the depth through f times the focal length (W. Yin et al., "Metric3D", ICCV 2023).
    """
    ratio = torch.as_tensor(focal_px, dtype=torch.float32, device=device) / canonical_px
    return ratio.log()[..., None, None] if ratio.ndim else ratio.log()


def input_size(height: int, width: int, patch: int, size_px: int, long_side_px: int | None = None) -> tuple[int, int]:
    """(height, width), multiples of `patch`, in the image's shape as nearly as they allow; at least one patch each.

    With as many pixels as a square of `size_px`, or with the longer side `long_side_px`.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} px has no size")
    scale = size_px / (height * width) ** 0.5 if long_side_px is None else long_side_px / max(height, width)
    return max(1, round(height * scale / patch)) * patch, max(1, round(width * scale / patch)) * patch
