"""Multi-HMR with the Anny body: from a square image to people's body parameters and the camera.

docs/models/multihmr.md, B. Attributes carry the published names; `encoder.backbone` is the ViT.
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
    from_rows,
    head_pixels,
    mlp,
    suppress,
    unproject,
)
from dune_cli.models.patch_embed import Tokens
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

SHAPE = ("gender", "age", "muscle", "weight", "height", "proportions")


@dataclass(frozen=True)
class AnnyHeadConfig:
    """`cells` n on a side (the image has n · 14 pixels), `features` the ViT's width, `bones` and `shape` how many
    rotations and shape numbers a person has, `hidden` the width inside each `mlp_*` by its name, `transformer` its
    sizes (width = context)."""

    cells: int
    features: int
    bones: int
    shape: int
    hidden: Mapping[str, int]
    transformer: PersonTransformerConfig


class MultiHmrAnny(nn.Module):
    """Images (B, 3, S, S) in [0, 1], letterboxed, to the people in each.

    `body` names the body model, `rig` the joints of Anny. `predicts_camera`: whether it gives K where none is given.
    """

    body, rig = "anny", "full"
    predicts_camera = True
    source = Source("none")

    def __init__(self, backbone: VisionTransformer, config: AnnyHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.width
        hidden = config.hidden
        self.encoder = AnnyEncoder(backbone, hidden["mlp_det"], hidden["mlp_fov_unique"])
        self.dec_to_token = nn.Linear(config.features, width)
        self.decoder = nn.ModuleDict({"transformer": PersonTransformer(config.transformer)})
        self.mlp_offset = mlp(width, hidden["mlp_offset"], 2)
        self.mlp_pose = mlp(width + config.bones * 6, hidden["mlp_pose"], config.bones * 6)
        self.mlp_shape = mlp(width, hidden["mlp_shape"], config.shape)
        self.mlp_dist = mlp(width, hidden["mlp_dist"], 1)
        self.register_buffer("dec_pos_emb", sine_positions(config.cells, width))
        self.register_buffer("init_body_pose", torch.zeros(1, config.bones * 6))
        self.register_buffer("useful_rotmat", torch.zeros(1, config.bones))

    @property
    def backbone(self) -> VisionTransformer:
        """The ViT whose tokens the head reads."""
        return self.encoder.backbone

    @property
    def size_px(self) -> int:
        """S, the only side that the published weights take."""
        return self.config.cells * self.encoder.backbone.patch

    def forward(
        self, images: torch.Tensor, K: torch.Tensor | None = None, min_score: float = MIN_SCORE
    ) -> list[Detections]:
        """images (B, 3, S, S) RGB in [0, 1], K (B, 3, 3) of these squares or None (predicted from each image).

        Detections of each image, nearest first. ValueError for other sizes.
        """
        check_square(images, K, self.size_px)
        return self.people(self.backbone(images), K, min_score)

    def people(self, tokens: Tokens, K: torch.Tensor | None = None, min_score: float = MIN_SCORE) -> list[Detections]:
        """The same from the backbone's tokens of the images (final norm applied), so that tasks can share one pass."""
        n = self.config.cells
        scores = suppress(self.encoder.scores(tokens.patches).unflatten(-1, (n, n)))
        if K is None:
            K = torch.stack([camera_of_fov(fov, self.size_px) for fov in self.encoder.field_of_view(tokens)])
        return [self._people(t, s, k, min_score) for t, s, k in zip(tokens.patches, scores, K.to(tokens.patches))]

    def _people(self, tokens: torch.Tensor, scores: torch.Tensor, K: torch.Tensor, min_score: float) -> Detections:
        cells = find_cells(scores, min_score)
        rows, columns = cells.unbind(-1)
        context = self.dec_to_token(tokens) + self.dec_pos_emb
        y = self.decoder["transformer"](context[rows * self.config.cells + columns], context)
        head_px = head_pixels(cells, self.mlp_offset(y), self.encoder.backbone.patch)
        depth = K[0, 0] / self.mlp_dist(y)[:, 0].exp().clamp_min(1e-5)
        start = self.init_body_pose.expand(len(cells), -1)
        pose = (self.mlp_pose(torch.cat([y, start], -1)) + start).unflatten(-1, (self.config.bones, 6))
        eye = torch.eye(3, device=pose.device)
        rotations = torch.where(self.useful_rotmat[0, :, None, None] != 0, from_rows(pose), eye)
        head = unproject(head_px, depth, K)
        nearest = head[:, 2].argsort(stable=True)
        return Detections(
            scores=scores[rows, columns][nearest],
            cells=cells[nearest],
            head_px=head_px[nearest],
            head=head[nearest],
            rotations=rotations[nearest],
            shape=self.mlp_shape(y).sigmoid()[nearest],
            expression=None,
            camera=None,
            K=K,
        )


class AnnyEncoder(nn.Module):
    """The ViT, the score of each cell, and the field of view of the whole image."""

    def __init__(self, backbone: VisionTransformer, det_hidden: int, fov_hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.mlp_det = mlp(backbone.width, det_hidden, 1)
        self.mlp_fov_unique = mlp(backbone.width, fov_hidden, 1)
        self.register_buffer("fov_max", torch.tensor([math.pi]))

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, N, D) -> score of a head in each cell (B, N), before suppression."""
        return self.mlp_det(tokens)[..., 0].sigmoid()

    def field_of_view(self, tokens: Tokens) -> torch.Tensor:
        """Radians across the square, (B,)."""
        return self.fov_max * self.mlp_fov_unique(tokens.cls)[:, 0].sigmoid()


def sine_positions(cells: int, width: int) -> torch.Tensor:
    """(n², width): the column in the first half of the channels, the row in the second; in each sines, then cosines
    of position · 10000^(-2i/d), d = width/2, i = 0 … d/2 - 1 (docs/models/multihmr.md, B)."""
    half = width // 2
    frequencies = 10000.0 ** (-2 * torch.arange(half // 2, dtype=torch.float64) / half)
    angles = torch.arange(cells, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], -1).float()
    columns = line.repeat(cells, 1)
    rows = line.repeat_interleave(cells, 0)
    return torch.cat([columns, rows], -1)
