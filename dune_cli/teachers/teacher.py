"""The base of all teachers: a frozen network that gives tokens on the student's grid, whatever its patch or stride."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

CLS, PATCH = "cls", "patch"
VALID = "valid"


class Teacher(nn.Module):
    """Base of all teachers.

    name: that of its projectors. widths: channels of each token type that it gives ("cls", "patch").
    source: its weights and their licence. gate: the weights that decide where it is valid; None for a teacher that is
    valid everywhere. note: what its CLS is, where it has none of its own.
    """

    name: str
    widths: dict[str, int]
    source: Source
    gate: Source | None = None
    note: str = ""

    @abstractmethod
    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        """images (B, 3, H, W) RGB in [0, 1] -> "cls" (B, D) and "patch" (B, N, D) on `grid` = (h, w), N = h·w.

        A teacher with a gate also gives "valid" (B, N): 1 where its patch tokens count, else 0. An image without valid
        tokens does not train it.
        """

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        """As `tokens`, checked, in float32, without gradients."""
        tokens = {kind: value.float() for kind, value in self.tokens(images, grid).items()}
        patches = (len(images), grid[0] * grid[1])
        shapes = {kind: (len(images), w) if kind == CLS else (*patches, w) for kind, w in self.widths.items()}
        for kind, shape in (shapes | ({VALID: patches} if self.gate is not None else {})).items():
            if tuple(tokens[kind].shape) != shape:
                raise ValueError(f"teacher {self.name}: {kind} tokens are {tuple(tokens[kind].shape)}, not {shape}")
        return tokens


class VitTeacher(Teacher):
    """An encoder `forward(images) -> Tokens`; `kinds` are the token types that it teaches.

    Positions of a DINOv2-shaped ViT are resampled by the first policy (offset 0.1, no antialiasing), the file with
    registers too, as in the published training (docs/models/encoder.md, "Teachers").
    """

    def __init__(self, name: str, encoder: nn.Module, kinds: tuple[str, ...], source: Source, note: str = "") -> None:
        super().__init__()
        if isinstance(encoder, VisionTransformer):
            encoder.config = replace(encoder.config, position_policy="offset")
        self.name, self.encoder, self.source, self.note = name, encoder, source, note
        self.widths = dict.fromkeys(kinds, encoder.width)

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        tokens = self.encoder(resize_to_grid(images, grid, self.encoder.patch))
        every = {CLS: tokens.cls, PATCH: tokens.patches}
        return {kind: every[kind] for kind in self.widths}


def resize_to_grid(images: torch.Tensor, grid: tuple[int, int], cell_px: int) -> torch.Tensor:
    """Images resized so that a network with patch or stride `cell_px` sees the grid (h, w): to cell_px·h × cell_px·w.

    Bicubic, align_corners=True, no antialiasing, as in the published training (docs/models/encoder.md, "Teachers").
    """
    size = (grid[0] * cell_px, grid[1] * cell_px)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=True)


def resample_map(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A convolutional map (B, C, H, W) on the student's grid: averaged over cells to shrink, bilinear to enlarge."""
    height, width = features.shape[-2:]
    if (height, width) == grid:
        return features
    if height >= grid[0] and width >= grid[1]:
        return F.adaptive_avg_pool2d(features, grid)
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)


def fold_map(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor | None:
    """A map whose cells subdivide the grid's evenly, (B, C, f·h, f·w), as (B, C·f², h, w): nothing is averaged away.

    None where they do not.
    """
    factor = features.shape[-1] // grid[1]
    if factor < 1 or tuple(features.shape[-2:]) != (factor * grid[0], factor * grid[1]):
        return None
    return F.pixel_unshuffle(features, factor) if factor > 1 else features


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """A map (B, C, h, w) as tokens (B, h·w, C)."""
    return features.flatten(2).transpose(1, 2)
