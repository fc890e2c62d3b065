"""Asking the teachers: in autocast, in pieces that fit, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dune_cli.teachers.teacher import Teacher
from dune_cli.training.common.dist import Dist
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.loss import TokenLoss, generic_index, teacher_losses, teacher_mask, token_loss
from dune_cli.training.distill.teacher_norm import PhiSFit, PhiSNorm, RunningTokenNorm, sum_over_ranks

TeacherOutputs = dict[str, dict[str, torch.Tensor]]


def run_teachers(
    teachers: Mapping[str, Teacher],
    images: torch.Tensor,
    grid: tuple[int, int],
    amp: torch.dtype,
    at_once: int | None = None,
) -> TeacherOutputs:
    """Every teacher's tokens of images (B, 3, H, W) on `grid`, float32, `at_once` images at a time (None: all)."""
    pieces = images.split(at_once or len(images))
    with autocast(images.device, amp):
        answers = [{name: teacher(piece, grid) for name, teacher in teachers.items()} for piece in pieces]
    if len(answers) == 1:
        return answers[0]
    return {
        name: {kind: torch.cat([answer[name][kind] for answer in answers]) for kind in kinds}
        for name, kinds in answers[0].items()
    }


def autocast(device: torch.device, amp: torch.dtype) -> torch.autocast:
    """Autocast to `amp`; none for float32."""
    return torch.autocast(device.type, amp, enabled=amp != torch.float32)


# One step of the distiller: losses and their weights, gradients clipped per parameter (spec 2).


def teacher_norms(widths: Mapping[str, Mapping[str, int]], how: str) -> nn.ModuleDict:
    """A norm for every teacher and token type; `how`: "mean-std" (DUNE's) or "phi-s"."""
    make = {"mean-std": RunningTokenNorm, "phi-s": PhiSNorm}[how]
    return nn.ModuleDict(
        {name: nn.ModuleDict({kind: make(width) for kind, width in kinds.items()}) for name, kinds in widths.items()}
    )


def fit_phi_s(norms: nn.ModuleDict, batches: Iterable[TeacherOutputs]) -> None:
    """Fits every PHI-S norm to teachers' tokens of a few batches."""
    fits = {(name, kind): PhiSFit(len(norm.mean)) for name, kinds in norms.items() for kind, norm in kinds.items()}
    for tokens in batches:
        for (name, kind), fit in fits.items():
            fit.add(tokens[name][kind])
    for (name, kind), fit in fits.items():
        fit.into(norms[name][kind])


def forward_backward(
    model: nn.Module,
    images: torch.Tensor,
    targets: TeacherOutputs,
    owner: torch.Tensor,
    config: DistillConfig,
    step: int,
    here: Dist,
    amp: torch.dtype,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Forward and backward of this rank's images (B, 3, S, S) in `accumulate` parts.

    owner (B): index of the teacher whose data an image is, or -1. Returns this rank's share of the numbers for the log
    (they add up over ranks) and the factor that the gradients still need: the weights sum to 1 over the images of all
    parts and ranks (the published training: over each process's own), so their sum is known only now.
    """
    size = len(images) // config.accumulate
    pairs = config.batch_size * len(targets)
    draws = torch.rand(
        config.batch_size, len(targets), generator=torch.Generator().manual_seed(seed_of(config.seed, step))
    )[here.rank :: here.count].to(images.device)
    count = torch.zeros((), device=images.device)
    shares: list[dict[str, torch.Tensor]] = []
    for part in range(config.accumulate):
        rows = slice(part * size, (part + 1) * size)
        waits = isinstance(model, DistributedDataParallel) and part < config.accumulate - 1
        with model.no_sync() if waits else nullcontext():
            with autocast(here.device, amp):
                predictions = model(images[rows])
            losses = {
                name: {kind: token_loss(predictions[name][kind], value[rows]) for kind, value in kinds.items()}
                for name, kinds in targets.items()
            }
            per_image = teacher_losses(losses)
            keep = teacher_mask(
                per_image,
                config.sharing,
                owner[rows],
                generic_index(tuple(targets)),
                config.drop_probability,
                draws[rows],
            )
            loss = (keep * per_image).sum()
            (loss * (here.count / pairs)).backward()  # ranks' gradients are averaged
        count += keep.sum()
        shares.append(_share(loss, losses, keep))
    total = sum_over_ranks(count)
    numbers = {name: torch.stack([share[name] for share in shares]).sum(0) for name in shares[0]}
    for name in numbers:
        numbers[name] /= total if name == "loss" or name.endswith("/coefficient") else config.batch_size
    return numbers, pairs / total


def _share(loss: torch.Tensor, losses: dict[str, dict[str, TokenLoss]], keep: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over images."""
    numbers = {"loss": loss.detach()}
    for column, (name, kinds) in enumerate(losses.items()):
        for kind, value in kinds.items():
            numbers[f"{name}/{kind}/cosine"] = value.cosine.detach().sum()
            numbers[f"{name}/{kind}/smooth_l1"] = value.smooth_l1.detach().sum()
        numbers[f"{name}/coefficient"] = keep[:, column].sum()
        numbers[f"{name}/dropped"] = (keep[:, column] == 0).float().sum()
    return numbers


@torch.no_grad()
def scale_and_clip(model: nn.Module, factor: torch.Tensor) -> None:
    """Multiplies each gradient by `factor`, then by min(1, 1/(its norm + 1e-6)) (spec 2, "Recipe")."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients and isinstance(gradients[0], DTensor):
        norms = [torch.linalg.vector_norm(gradient).full_tensor() for gradient in gradients]
        gradients = [gradient.to_local() for gradient in gradients]
    else:
        norms = torch._foreach_norm(gradients)
    for gradient, norm in zip(gradients, norms):
        gradient.mul_(factor * (1 / (norm * factor + 1e-6)).clamp(max=1))


def seed_of(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's random numbers."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % 2**63
