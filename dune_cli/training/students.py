"""Students: DUNE's ViTs, `dune-mini`, any timm model; and the module that the loop trains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.init import trunc_normal_

from dune_cli.errors import UserError
from dune_cli.models.blocks import LayerScale
from dune_cli.models.mini import MiniConfig, MiniEncoder
from dune_cli.models.tokens import Tokens
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.teachers.base import resample_map
from dune_cli.training.projectors import PROJECTORS

NAMES = ("dune-vits14", "dune-vitb14", "dune-mini", "vit:WIDTHxDEPTH", "timm:MODEL")
_VITS = {"dune-vits14": (384, 12), "dune-vitb14": (768, 12)}
REGISTERS = 4


class TimmStudent(nn.Module):
    """A timm model whose last feature map stands on a stride-16 grid; its mean is the CLS.

    The whole model is kept, its classifier untouched, so that the trained state dict is timm's own.
    """

    patch = 16
    depths = 1

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        try:
            self.model = timm.create_model(name, pretrained=False)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"timm has no model {name!r} ({' '.join(str(error).split())[:120]})") from error
        self.name, self.width = name, int(self.model.num_features)
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        self.heads = max(1, self.width // 64)

    def intermediate(self, images: torch.Tensor, layers: Sequence[int], norm: bool = False) -> list[Tokens]:
        """One level: the last features, on the grid (H/16, W/16)."""
        mean, std = (torch.tensor(self.model.default_cfg[key], device=images.device) for key in ("mean", "std"))
        features = self.model.forward_features((images - mean[:, None, None]) / std[:, None, None])
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        if features.ndim == 3:
            tokens = features[:, self.prefix :]
            side = self.model.patch_embed.grid_size
            if tokens.shape[1] != side[0] * side[1]:
                raise UserError(f"{self.name} gives {tokens.shape[1]} tokens; its own grid is {side}; use its own size")
            features = tokens.transpose(1, 2).unflatten(2, side)
        elif features.shape[1] != self.width:
            features = features.permute(0, 3, 1, 2)  # timm's channels-last families
        features = resample_map(features, grid)
        patches = features.flatten(2).transpose(1, 2)
        return [Tokens(patches.mean(1), patches[:, :0], patches, grid)]


def build_encoder(name: str, size_px: int, generator: torch.Generator) -> nn.Module:
    """A student encoder with fresh weights. Raises UserError for an unknown name."""
    if name.startswith("timm:"):
        return TimmStudent(name.removeprefix("timm:"))
    if name == "dune-mini":
        encoder: nn.Module = MiniEncoder(MiniConfig())
    elif found := re.fullmatch(r"vit:(\d+)x(\d+)", name):
        encoder = _vit(int(found[1]), int(found[2]), size_px)
    elif name in _VITS:
        encoder = _vit(*_VITS[name], size_px)
    else:
        raise UserError(f"unknown student {name!r}; known: {', '.join(NAMES)}")
    initialise(encoder, generator)
    return encoder


def _vit(width: int, depth: int, size_px: int) -> VisionTransformer:
    if width % 64:
        raise UserError(f"a ViT student's width must be a multiple of 64 (one head each), not {width}")
    return VisionTransformer(
        VitConfig(width, depth, width // 64, 4 * width, 14, REGISTERS, max(1, size_px // 14), "offset")
    )


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """DUNE's: linears truncated normal 0.02 with zero biases, positions 0.02, CLS and registers 1e-6 (spec 2)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            trunc_normal_(part.weight, std=0.02, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            std = (2.0 / part.weight[0].numel()) ** 0.5 if part.kernel_size == (3, 3) else 0.02
            trunc_normal_(part.weight, std=std, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, LayerScale):
            nn.init.constant_(part.gamma, 1e-4)
    for name, parameter in module.named_parameters():
        if name.endswith("pos_embed"):
            trunc_normal_(parameter, std=0.02, generator=generator)
        elif name.endswith(("cls_token", "register_tokens")):
            nn.init.normal_(parameter, std=1e-6, generator=generator)


class Student(nn.Module):
    """Encoder and a projector a teacher: what the loop trains and a rank wraps."""

    def __init__(
        self, encoder: nn.Module, widths: Mapping[str, Mapping[str, int]], projector: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = encoder
        blocks = len(encoder.blocks) if hasattr(encoder, "blocks") else 1
        self.levels = ladder_levels(blocks) if projector == "lp" else (-1,)
        heads = encoder.heads if isinstance(encoder, TimmStudent) else encoder.config.heads
        if encoder.width % heads:
            heads = 1
        self.projectors = nn.ModuleDict(
            {
                name: PROJECTORS[projector](encoder.width, heads, len(self.levels), kinds)
                for name, kinds in widths.items()
            }
        )
        initialise(self.projectors, generator)
        self.kinds = {name: tuple(kinds) for name, kinds in widths.items()}

    def forward(self, images: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """images (B, 3, H, W) in [0, 1] -> predictions by teacher and token type."""
        tokens = self.encoder.intermediate(images, self.levels, norm=False)
        out = {}
        for name, projector in self.projectors.items():
            prediction = projector(tokens)
            out[name] = {kind: prediction[kind].float() for kind in self.kinds[name]}
        return out


def ladder_levels(blocks: int) -> tuple[int, ...]:
    """Four evenly spaced depths, the last block among them."""
    return tuple(sorted({max(0, round(blocks * part / 4) - 1) for part in (1, 2, 3, 4)}))


def weight_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """AdamW groups: no decay on biases and other parameters of one dimension."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
