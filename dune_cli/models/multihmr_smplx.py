"""Multi-HMR with the SMPL-X body (docs/models/multihmr.md, A): from a square image to people's body parameters.

The ViT and the fixed attributes carry the published names, so that a state dict without its `backbone.encoder.`
nesting loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

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
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

ROTATIONS = 53
FOV_UNKNOWN = math.radians(60)
FARTHEST = 50.0


@dataclass(frozen=True)
class SmplxHeadConfig:
    """`cells` n on a side (the image has n · 14 pixels), `features` the ViT's width, `bands` Fourier frequencies per
    axis from 1 to `highest_band`, `betas` and `expression` how many numbers the body has, `hidden` the width inside
    each `mlp_*` by its name, `transformer` its sizes.
    """

    cells: int
    features: int
    bands: int
    highest_band: float
    betas: int
    expression: int
    hidden: Mapping[str, int]
    transformer: PersonTransformerConfig

    @property
    def context(self) -> int:
        """Width of a cell's vector: its token, its ray, and the ray's Fourier features."""
        return self.features + 3 + 6 * self.bands


class MultiHmrSmplx(nn.Module):
    """Images (B, 3, S, S) in [0, 1], letterboxed, to the people in each.

    `body` names the body model; `predicts_camera` says whether K is predicted where none is given.
    """

    body = "smplx"
    predicts_camera = False
    source = Source("none")

    def __init__(self, backbone: VisionTransformer, config: SmplxHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.mlp_classif = mlp(config.features, config.hidden["mlp_classif"], 1)
        self.mlp_offset = mlp(config.features, config.hidden["mlp_offset"], 2)
        self.x_attention_head = SmplxHead(config, backbone.patch)

    @property
    def size_px(self) -> int:
        """S, the only side that the published weights take."""
        return self.config.cells * self.backbone.patch

    def forward(
        self, images: torch.Tensor, K: torch.Tensor | None = None, min_score: float = MIN_SCORE
    ) -> list[Detections]:
        """images (B, 3, S, S) RGB in [0, 1], K (B, 3, 3) of these squares or None (60 degrees, centre S/2).

        Detections of each image, by row and column. ValueError for other sizes.
        """
        check_square(images, K, self.size_px)
        return self.people(self.backbone(images), K, min_score)

    def people(self, tokens: Tokens, K: torch.Tensor | None = None, min_score: float = MIN_SCORE) -> list[Detections]:
        """The same from the backbone's tokens of the images (final norm applied), so that tasks can share one pass."""
        patches, n = tokens.patches, self.config.cells
        scores = suppress(self.scores(patches).unflatten(-1, (n, n)))
        if K is None:
            K = camera_of_fov(FOV_UNKNOWN, self.size_px).expand(len(patches), 3, 3)
        return [self._people(t, s, k, min_score) for t, s, k in zip(patches, scores, K.to(patches))]

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, N, D) -> score of a head in each cell (B, N), before suppression."""
        return self.mlp_classif(tokens)[..., 0].sigmoid().clamp(1e-4, 1 - 1e-4)

    def _people(self, tokens: torch.Tensor, scores: torch.Tensor, K: torch.Tensor, min_score: float) -> Detections:
        cells = find_cells(scores, min_score)
        rows, columns = cells.unbind(-1)
        found = tokens[rows * self.config.cells + columns]
        head_px = head_pixels(cells, self.mlp_offset(found), self.backbone.patch)
        rotations, betas, camera, expression = self.x_attention_head(tokens, cells, K)
        depth = distance(camera[:, 0], K[0, 0], self.size_px)
        return Detections(
            scores=scores[rows, columns],
            cells=cells,
            head_px=head_px,
            head=unproject(head_px, depth, K),
            rotations=rotations,
            shape=betas,
            expression=expression,
            camera=camera,
            K=K,
        )


class SmplxHead(nn.Module):
    """Cells of one image and the detected ones -> body parameters (the published `x_attention_head`)."""

    def __init__(self, config: SmplxHeadConfig, patch: int) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        n, width = config.cells, config.context
        for name in ("cross_queries_x", "cross_queries_y", "cross_values_x", "cross_values_y"):
            self.register_parameter(name, nn.Parameter(torch.zeros(n, width)))
        self.register_buffer("init_body_pose", torch.zeros(1, ROTATIONS * 6))
        self.register_buffer("init_betas", torch.zeros(1, config.betas))
        self.register_buffer("init_cam", torch.zeros(1, 3))
        self.register_buffer("init_expression", torch.zeros(1, config.expression))
        out = config.transformer.width
        self.transformer = _TokenTransformer(width + ROTATIONS * 6 + config.betas + 3, config.transformer)
        self.decpose = nn.Linear(out, ROTATIONS * 6)
        self.decshape = nn.Linear(out, config.betas)
        self.deccam = nn.Linear(out, 3)
        self.decexpression = nn.Linear(out, config.expression)

    def forward(
        self, tokens: torch.Tensor, cells: torch.Tensor, K: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens (N, D) of one image, cells (P, 2), K (3, 3) -> rotations (P, 53, 3, 3), betas (P, S), camera (P, 3),
        expression (P, E)."""
        rows, columns = cells.unbind(-1)
        index = rows * self.config.cells + columns
        context = torch.cat([tokens, self.camera_embedding(K)], -1)
        query = context[index] + self.cross_queries_x[rows] + self.cross_queries_y[columns]
        context = context.index_add(0, index, self.cross_values_x[rows] + self.cross_values_y[columns])
        start = torch.cat([self.init_body_pose, self.init_betas, self.init_cam], -1).expand(len(cells), -1)
        y = self.transformer(torch.cat([query, start], -1), context)
        pose = (self.decpose(y) + self.init_body_pose).unflatten(-1, (ROTATIONS, 6))
        return (
            from_columns(pose),
            self.decshape(y) + self.init_betas,
            self.deccam(y) + self.init_cam,
            self.decexpression(y) + self.init_expression,
        )

    def camera_embedding(self, K: torch.Tensor) -> torch.Tensor:
        """K (3, 3) -> (N, 3 + 6·bands): each cell's ray, then sines and cosines of its multiples, by axis and band.

        The published weights were trained with rows passed as x: cell (i, j) has the ray of the pixel x = 14i + 7.
        """
        n = self.config.cells
        centres = torch.arange(n, device=K.device, dtype=torch.float32) * self.patch + self.patch / 2
        swapped = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).flatten(0, 1)
        ray = rays(swapped, K)
        bands = torch.linspace(1, self.config.highest_band, self.config.bands, device=K.device)
        angles = (ray[..., None] * bands * torch.pi).flatten(-2)
        return torch.cat([ray, angles.sin(), angles.cos()], -1)


class _TokenTransformer(nn.Module):
    """The person transformer with its input layer; its one position embedding is added to every person."""

    def __init__(self, inputs: int, config: PersonTransformerConfig) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, config.width))
        self.to_token_embedding = nn.Linear(inputs, config.width)
        self.transformer = PersonTransformer(config)

    def forward(self, people: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.transformer(self.to_token_embedding(people) + self.pos_embedding[:, 0], context)


def distance(nearness: torch.Tensor, focal_px: torch.Tensor | float, size_px: int) -> torch.Tensor:
    """cam[0] (P,) -> depth z of the head in metres (P,), in [0, 50]; docs/models/multihmr.md, A, "Distance"."""
    focal_60 = size_px / (2 * math.tan(FOV_UNKNOWN / 2))
    return (torch.exp(nearness * focal_px / focal_60) - 1e-10).clamp(0, FARTHEST)
