"""One step of the distiller: losses, teacher mask, gradients, clipping (docs/models/distillation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dune_cli.training.common.dist import Dist, sum_over_ranks
from dune_cli.training.common.loop import autocast, step_seed
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.loss import (
    TokenLoss,
    generic_index,
    speaks,
    teacher_losses,
    teacher_mask,
    token_loss,
)
from dune_cli.training.distill.teacher_outputs import TeacherOutputs


@dataclass(frozen=True)
class BatchTargets:
    """What a batch of images is to teach.

    tokens: standardised, by teacher and token type. owner (B,): index of the teacher whose data an image is from, or
    -1. valid: of the teachers with a gate, the weights (B, N) of their patches.
    """

    tokens: TeacherOutputs
    owner: torch.Tensor
    valid: Mapping[str, torch.Tensor] = field(default_factory=dict)


def forward_backward(
    model: nn.Module,
    images: torch.Tensor,
    targets: BatchTargets,
    config: DistillConfig,
    step: int,
    dist: Dist,
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Forward and backward pass of this process's images (B, 3, S, S), in `accumulate` parts.

    Returns this process's share of the numbers for
    the log, which add up over processes, and the factor that the gradients still need. The weights sum to 1 over the
    images of all parts and processes, so their sum is known only after the last part. (The published training
    normalises over each process's own images.)
    """
    size = len(images) // config.accumulate
    tokens, valid = targets.tokens, targets.valid
    pairs = config.batch_size * len(tokens)
    draws = torch.rand(
        config.batch_size, len(tokens), generator=torch.Generator().manual_seed(step_seed(config.seed, step))
    )[dist.rank :: dist.world_size].to(images.device)
    count = torch.zeros((), device=images.device)
    sums: list[dict[str, torch.Tensor]] = []
    for part in range(config.accumulate):
        rows = slice(part * size, (part + 1) * size)
        skips_sync = isinstance(model, DistributedDataParallel) and part < config.accumulate - 1
        with model.no_sync() if skips_sync else nullcontext():
            with autocast(dist.device, dtype):
                predictions = model(images[rows])
            losses = {
                name: {
                    kind: token_loss(predictions[name][kind], value[rows], valid[name][rows] if name in valid else None)
                    for kind, value in types.items()
                }
                for name, types in tokens.items()
            }
            per_image = teacher_losses(losses)
            spoken = {name: speaks(weights[rows]) for name, weights in valid.items()}
            every = torch.ones(size, dtype=torch.bool, device=images.device)
            mask = teacher_mask(
                per_image,
                config.sharing,
                targets.owner[rows],
                generic_index(tuple(tokens)),
                config.drop_probability,
                draws[rows],
                torch.stack([spoken.get(name, every) for name in tokens], 1) if valid else None,
            )
            loss = (mask * per_image).sum()
            (loss * (dist.world_size / pairs)).backward()  # gradients are averaged over processes
        count += mask.sum()
        sums.append(_sums(loss, losses, mask, spoken))
    total = sum_over_ranks(count).clamp(min=1)
    numbers = {name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]}
    heard = {name: sum_over_ranks(numbers[f"{name}/spoken"]).clamp(min=1) for name in valid}
    for name in numbers:
        teacher, _, number = name.rpartition("/")
        if name == "loss" or number == "coefficient":
            numbers[name] /= total
        elif number in ("cosine", "smooth_l1"):
            numbers[name] /= heard.get(teacher.partition("/")[0], config.batch_size)
        else:
            numbers[name] /= config.batch_size
    return numbers, pairs / total


def _sums(
    loss: torch.Tensor,
    losses: dict[str, dict[str, TokenLoss]],
    mask: torch.Tensor,
    spoken: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The numbers for the log, summed over images."""
    sums = {"loss": loss.detach()}
    for column, (name, types) in enumerate(losses.items()):
        for kind, value in types.items():
            sums[f"{name}/{kind}/cosine"] = value.cosine.detach().sum()
            sums[f"{name}/{kind}/smooth_l1"] = value.smooth_l1.detach().sum()
        sums[f"{name}/coefficient"] = mask[:, column].sum()
        sums[f"{name}/dropped"] = (mask[:, column] == 0).float().sum()
        if name in spoken:
            sums[f"{name}/spoken"] = spoken[name].float().sum()
    return sums


@torch.no_grad()
def scale_and_clip(model: nn.Module, factor: torch.Tensor) -> None:
    """Multiplies each parameter's gradient by `factor`, then by min(1, 1 / (its norm + 1e-6))."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients and isinstance(gradients[0], DTensor):
        norms = [torch.linalg.vector_norm(gradient).full_tensor() for gradient in gradients]
        gradients = [gradient.to_local() for gradient in gradients]
    else:
        norms = torch._foreach_norm(gradients)
    for gradient, norm in zip(gradients, norms):
        gradient.mul_(factor * (1 / (norm * factor + 1e-6)).clamp(max=1))
