"""What stands in a column of `dune eval features`: encoders, teachers, untrained networks, raw pixels; one interface.

`NAME|FILE|timm:…` an encoder; `teacher:NAME[=FILE]` a teacher of dune distill; `random:STUDENT` or `random:FILE` the
same network with fresh weights, the control of what training brought; `pixels` no network at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli import runtime
from dune_cli.checkpoints.load import load_encoder
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.provenance import Source
from dune_cli.teachers.base import CLS, PATCH, Teacher
from dune_cli.teachers.load import load_teacher
from dune_cli.training.students import initialise, new_student
from dune_cli.training.timm_student import TimmStudent

PIXELS = "pixels"
CELL_PX = 16  # of columns without a patch grid of their own
SMALL_PX = 16  # side of the picture that stands for the whole photo in the column `pixels`


@dataclass(frozen=True)
class Tokens:
    """cls (B, D) and patches (B, h, w, D), float32, on the CPU."""

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Column:
    """One set of features. `encode`: images (B, 3, H, W) in [0, 1], sides multiples of `cell_px` -> Tokens.

    distilled: the encoder, where it has projectors that predict teachers.
    """

    name: str
    source: Source
    cell_px: int
    encode: Callable[[torch.Tensor], Tokens]
    distilled: DistilledEncoder | None = None


def open_column(spec: str, size_px: int, seed: int, device: str, dtype: str) -> Column:
    """The column of a spec. Raises UserError, CheckpointError, WeightsMissing or PackageMissing."""
    if spec == PIXELS:
        return Column(spec, Source("raw pixels", None, "none"), CELL_PX, _pixels)
    if spec.startswith("random:"):
        return _random(spec, size_px, seed, device)
    if spec.startswith(("teacher:", "timm:")):
        where = runtime.pick_device(device)
        teacher = load_teacher(spec.removeprefix("teacher:"), where, runtime.pick_dtype(dtype, where)).to(where)
        return _of_teacher(spec, teacher, where)
    encoder = load_encoder(spec, device, dtype)
    return _of_encoder(spec, encoder, encoder.source)


def _of_encoder(name: str, encoder: nn.Module, source: Source) -> Column:
    def encode(images: torch.Tensor) -> Tokens:
        with torch.inference_mode():
            tokens = encoder(images)
        return Tokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    predicts = encoder if isinstance(encoder, DistilledEncoder) and encoder.teachers else None
    return Column(name, source, encoder.patch, encode, predicts)


def _of_teacher(name: str, teacher: Teacher, device: torch.device) -> Column:
    cell_px = int(getattr(getattr(teacher, "encoder", None), "patch", CELL_PX))

    def encode(images: torch.Tensor) -> Tokens:
        grid = (images.shape[-2] // cell_px, images.shape[-1] // cell_px)
        tokens = teacher(images.to(device), grid)
        patches = tokens[PATCH].float().cpu().unflatten(1, grid)
        return Tokens(tokens[CLS].float().cpu() if CLS in tokens else patches.mean((1, 2)), patches)

    return Column(name, teacher.source, cell_px, encode)


def _random(spec: str, size_px: int, seed: int, device: str) -> Column:
    name = spec.removeprefix("random:")
    where = runtime.pick_device(device)
    source = Source(spec, None, "none")
    if Path(name).is_file():
        encoder = load_encoder(name, device)
        for part in encoder.modules():
            if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                part.reset_parameters()
        initialise(encoder, torch.Generator().manual_seed(seed))
        return _of_encoder(spec, encoder.eval(), source)
    encoder = new_student(name, _near(size_px, name), seed, open_weights=False).eval().to(where)
    if not isinstance(encoder, TimmStudent):
        return _of_encoder(spec, encoder, source)

    def encode(images: torch.Tensor) -> Tokens:
        with torch.inference_mode():
            tokens = encoder.intermediate(images.to(where), (-1,))[0]
        return Tokens(tokens.cls.float().cpu(), tokens.map().float().cpu())

    return Column(spec, source, encoder.patch, encode)


def _near(size_px: int, name: str) -> int:
    """A size that a fresh student of any patch takes, near the wanted one."""
    patch = 14 if name.startswith(("dune-vit", "vit:")) else 16
    return max(1, round(size_px / patch)) * patch


def _pixels(images: torch.Tensor) -> Tokens:
    """Each cell of 16 px as 8 x 8 RGB values, the whole photo as 16 x 16, both without their mean colour."""
    cells = F.avg_pool2d(images, 2)
    patches = F.pixel_unshuffle(cells, CELL_PX // 2).unflatten(1, (3, -1))
    patches = (patches - patches.mean(2, keepdim=True)).flatten(1, 2).permute(0, 2, 3, 1)
    small = F.interpolate(images, size=(SMALL_PX, SMALL_PX), mode="area")
    return Tokens((small - small.mean((2, 3), keepdim=True)).flatten(1), patches)
