"""A head for people on the features of any encoder, in the manner of Multi-HMR on Anny (docs/models/people-head.md).

Each cell of the patch grid scores whether a person's head lies in it. A person is a query at its cell, which looks at
the other people and at all cells (models/multihmr_common.py), and gives the head's place and depth, the turns of the
body's joints, and its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dune_cli.models.heads import Feature, FeatureNorm, Features, extract, norm_key
from dune_cli.models.multihmr_anny import sine_positions
from dune_cli.models.multihmr_common import (
    MIN_SCORE,
    Detections,
    PersonTransformer,
    PersonTransformerConfig,
    camera_of_fov,
    check_square,
    find_cells,
    from_columns,
    head_pixels,
    mlp,
    rays,
    suppress,
    unproject,
)
from dune_cli.provenance import Source

FOV_DEG = 55.0  # across the square, where the camera is not known
RAY_BANDS = (1.0, 2.0, 4.0, 8.0)  # radians per unit of a ray's slope, over pi
RAY_CHANNELS = 2 + 4 * len(RAY_BANDS)
START_SCORE = 0.01  # of a cell, before training
START_NEARNESS = math.log(100.0)  # a metre is 100 px long in the square
SHAPE = 6


@dataclass(frozen=True)
class PeopleHeadConfig:
    """Sizes of a head. features: what it reads, maps of scale 1 or 2. joints: those of the body that it turns, by name,
    the root first. size_px: side of its square. width, hidden, depth: of the people's tokens."""

    features: tuple[Feature, ...]
    joints: tuple[str, ...]
    size_px: int = 448
    width: int = 256
    hidden: int = 512
    depth: int = 2

    def __post_init__(self) -> None:
        strange = [feature.name for feature in self.features if feature.scale not in (1, 2)]
        if strange or not self.features:
            raise ValueError(f"a head for people reads maps of scale 1 or 2; received {strange or 'none'}")
        if self.width < 32 or self.width % 32 or self.depth < 1 or not self.joints:
            raise ValueError(f"a head for people needs joints, a width that is a multiple of 32, and layers: {self}")


@dataclass(frozen=True)
class PersonNumbers:
    """What the head says of P people at given cells: offsets (P, 2) x and y in cells from the cell's centre, nearness
    (P,) the logarithm of focal length over depth, in 1 / metres, rotations (P, R, 3, 3), shape (P, 6) in [0, 1]."""

    offsets: torch.Tensor
    nearness: torch.Tensor
    rotations: torch.Tensor
    shape: torch.Tensor


class PeopleHead(nn.Module):
    """Features of square images to scores of cells, and numbers of people at cells."""

    start_pose: torch.Tensor

    def __init__(self, config: PeopleHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        channels = sum(feature.channels * feature.scale**2 for feature in config.features)
        self.norms = nn.ModuleDict({norm_key(f.name): FeatureNorm(f.channels) for f in config.features})
        self.enter = nn.Linear(channels + RAY_CHANNELS, width)
        self.context_norm = nn.LayerNorm(width)
        self.score = mlp(width, width // 2, 1)
        sizes = PersonTransformerConfig(width, width, width, width // 32, config.hidden, config.depth)
        self.transformer = PersonTransformer(sizes)
        self.leave_norm = nn.LayerNorm(width)
        self.place = nn.Linear(width, 3)
        self.pose = nn.Linear(width, 6 * len(config.joints))
        self.shape = nn.Linear(width, SHAPE)
        start = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(len(config.joints), 1)
        start[0] = torch.tensor([1.0, 0, 0, 0, 0, 1])  # upright, facing the camera
        self.register_buffer("start_pose", start)
        nn.init.constant_(self.score[-1].bias, math.log(START_SCORE / (1 - START_SCORE)))
        for layer in (self.place, self.pose, self.shape):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def context(self, features: Features, K: torch.Tensor) -> torch.Tensor:
        """Features by name of B squares, K (B, 3, 3) of these, pixels from the corner -> cells (B, n·n, width)."""
        maps = []
        for feature in self.config.features:
            value = self.norms[norm_key(feature.name)](features[feature.name])
            maps.append(F.pixel_unshuffle(value, 2) if feature.scale == 2 else value)
        cells = torch.cat(maps, 1)
        n = cells.shape[-1]
        cells = torch.cat([cells.flatten(2).mT, self._slopes(K, n)], -1)
        positions = sine_positions(n, self.config.width).to(cells)
        return self.context_norm(self.enter(cells)) + positions

    def _slopes(self, K: torch.Tensor, n: int) -> torch.Tensor:
        """(B, n·n, RAY_CHANNELS): the slopes x/z, y/z of the rays of the cells' centres, with sines and cosines."""
        steps = (torch.arange(n, device=K.device, dtype=torch.float32) + 0.5) * (self.config.size_px / n)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        pixels = torch.stack([columns.flatten(), rows.flatten()], -1)
        slopes = torch.stack([rays(pixels, one)[:, :2] for one in K])
        angles = (slopes[..., None] * (math.pi * torch.tensor(RAY_BANDS, device=K.device))).flatten(2)
        return torch.cat([slopes, angles.sin(), angles.cos()], -1)

    def logits(self, context: torch.Tensor) -> torch.Tensor:
        """Cells (B, n·n, width) -> logits (B, n, n) of a head in each."""
        n = math.isqrt(context.shape[1])
        return self.score(context)[..., 0].unflatten(-1, (n, n))

    def tokens(self, context: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """One image's cells (n·n, width) and people's cells (P, 2), row and column -> people's tokens (P, width)."""
        n = math.isqrt(len(context))
        return self.transformer(context[cells[:, 0] * n + cells[:, 1]], context)

    def numbers(self, tokens: torch.Tensor) -> PersonNumbers:
        """People's tokens (P, width), of any images, to what they say."""
        y = self.leave_norm(tokens)
        place = self.place(y)
        pose = self.pose(y).unflatten(-1, (-1, 6)) + self.start_pose
        return PersonNumbers(place[:, :2], place[:, 2] + START_NEARNESS, from_columns(pose), self.shape(y).sigmoid())


@dataclass(frozen=True)
class PeopleHeadCard:
    """What a head's file says beside its weights: the encoder that its features come from, by name and sha256, licence,
    data and measured numbers; assumed_height and its deviation in metres, from which its distances follow."""

    encoder: str
    encoder_sha256: str
    licence: str
    assumed_height: float
    assumed_height_sd: float
    data: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


class HeadedPeople(nn.Module):
    """An encoder with a head for people, with the interface of Multi-HMR's networks. Runs where its weights are."""

    body, rig = "anny", "light"
    predicts_camera = False
    source = Source("none")

    def __init__(self, encoder: nn.Module, head: PeopleHead, card: PeopleHeadCard) -> None:
        super().__init__()
        self.encoder, self.head, self.card = encoder, head, card

    @property
    def size_px(self) -> int:
        """S, the side of its square."""
        return self.head.config.size_px

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints that it turns."""
        return self.head.config.joints

    def forward(
        self, images: torch.Tensor, K: torch.Tensor | None = None, min_score: float = MIN_SCORE
    ) -> list[Detections]:
        """images (B, 3, S, S) RGB in [0, 1], letterboxed; K (B, 3, 3) of these squares, pixels from the corner; None: a
        field of view of 55 degrees. Detections of each image, nearest first. ValueError for other sizes."""
        check_square(images, K, self.size_px)
        if K is None:
            K = camera_of_fov(math.radians(FOV_DEG), self.size_px).expand(len(images), 3, 3)
        features = extract(self.encoder, images, [feature.name for feature in self.head.config.features])
        K = K.to(next(iter(features.values())))
        context = self.head.context(features, K)
        scores = suppress(self.head.logits(context).sigmoid())
        return [self._people(one, score, k, min_score) for one, score, k in zip(context, scores, K)]

    def _people(self, context: torch.Tensor, scores: torch.Tensor, K: torch.Tensor, min_score: float) -> Detections:
        cells = find_cells(scores, min_score)
        said = self.head.numbers(self.head.tokens(context, cells))
        head_px = head_pixels(cells, said.offsets, self.size_px // len(scores))
        head = unproject(head_px, depth_of(said.nearness, K), K)
        nearest = head[:, 2].argsort(stable=True)
        return Detections(
            scores=scores[cells[:, 0], cells[:, 1]][nearest],
            cells=cells[nearest],
            head_px=head_px[nearest],
            head=head[nearest],
            rotations=said.rotations[nearest],
            shape=said.shape[nearest],
            expression=None,
            camera=None,
            K=K,
        )


def depth_of(nearness: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """z (P,) in metres of nearness (P,) in a camera K (3, 3), or (P, 3, 3)."""
    return K[..., 0, 0] / nearness.exp().clamp_min(1e-3)
