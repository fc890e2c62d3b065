"""One step of the distiller: teachers' tokens, losses and their weights, gradients clipped per parameter (spec 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dune_cli.teachers.base import Teacher
from dune_cli.training.batches import Batch
from dune_cli.training.config import DistillConfig
from dune_cli.training.losses import TokenLoss, teacher_losses, token_loss
from dune_cli.training.phi_s import PhiSFit, PhiSNorm
from dune_cli.training.ranks import Ranks
from dune_cli.training.sharing import coefficients
from dune_cli.training.teacher_norm import RunningTokenNorm


def teacher_norms(widths: Mapping[str, Mapping[str, int]], how: str) -> nn.ModuleDict:
    """A norm for every teacher and token type; `how`: "mean-std" (DUNE's) or "phi-s"."""
    make = {"mean-std": RunningTokenNorm, "phi-s": PhiSNorm}[how]
    return nn.ModuleDict(
        {name: nn.ModuleDict({kind: make(width) for kind, width in kinds.items()}) for name, kinds in widths.items()}
    )


def fit_phi_s(norms: nn.ModuleDict, batches: Iterable[dict[str, dict[str, torch.Tensor]]]) -> None:
    """Fits every PHI-S norm to teachers' tokens of a few batches."""
    fits = {(name, kind): PhiSFit(len(norm.mean)) for name, kinds in norms.items() for kind, norm in kinds.items()}
    for tokens in batches:
        for (name, kind), fit in fits.items():
            fit.add(tokens[name][kind])
    for (name, kind), fit in fits.items():
        fit.into(norms[name][kind])


def teach(
    teachers: Mapping[str, Teacher], images: torch.Tensor, grid: tuple[int, int], amp: torch.dtype
) -> dict[str, dict[str, torch.Tensor]]:
    """Every teacher's tokens of images (B, 3, H, W) on `grid`, float32."""
    with autocast(images.device, amp):
        return {name: teacher(images, grid) for name, teacher in teachers.items()}


def forward_backward(
    model: nn.Module,
    batch: Batch,
    targets: dict[str, dict[str, torch.Tensor]],
    owners: torch.Tensor,
    config: DistillConfig,
    step: int,
    here: Ranks,
    amp: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Forward and backward of one batch, in `accumulate` parts; returns detached numbers for the log."""
    generator = torch.Generator().manual_seed(_seed_of(config.seed, step, here.rank))
    parts = config.accumulate
    size = len(batch.images) // parts
    totals: dict[str, torch.Tensor] = {}
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        waits = isinstance(model, DistributedDataParallel) and part < parts - 1
        with model.no_sync() if waits else nullcontext():
            with autocast(here.device, amp):
                predictions = model(batch.images[rows].to(here.device))
            losses = {
                name: {kind: token_loss(predictions[name][kind], value[rows]) for kind, value in kinds.items()}
                for name, kinds in targets.items()
            }
            per_image = teacher_losses(losses)
            weights = coefficients(
                per_image,
                config.sharing,
                owners[batch.owner[rows]].to(here.device),
                drop_probability=config.drop_probability,
                generator=generator,
            )
            loss = (weights * per_image).sum()
            (loss / parts).backward()
        for name, value in _numbers(loss, losses, weights).items():
            totals[name] = totals.get(name, 0) + value / parts
    return totals


def _numbers(
    loss: torch.Tensor, losses: dict[str, dict[str, TokenLoss]], weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    numbers = {"loss": loss.detach()}
    for column, (name, kinds) in enumerate(losses.items()):
        for kind, value in kinds.items():
            numbers[f"{name}/{kind}/cosine"] = value.cosine.detach().mean()
            numbers[f"{name}/{kind}/smooth_l1"] = value.smooth_l1.detach().mean()
        numbers[f"{name}/coefficient"] = weights[:, column].sum()
        numbers[f"{name}/dropped"] = (weights[:, column] == 0).float().mean()
    return numbers


@torch.no_grad()
def clip_per_parameter(model: nn.Module) -> None:
    """Scales each gradient by min(1, 1/(its norm + 1e-6)) (spec 2, "Recipe")."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient, norm in zip(gradients, torch._foreach_norm(gradients)):
        gradient.mul_((1 / (norm + 1e-6)).clamp(max=1))


def _seed_of(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def autocast(device: torch.device, amp: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, amp, enabled=amp != torch.float32)
