"""One step of the distiller: losses, teacher mask, gradients, clipping (docs/models/distillation.md)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dune_cli.training.common.dist import Dist, sum_over_ranks
from dune_cli.training.common.loop import autocast, step_seed
from dune_cli.training.distill.config import DistillConfig
from dune_cli.training.distill.loss import TokenLoss, generic_index, teacher_losses, teacher_mask, token_loss
from dune_cli.training.distill.teacher_outputs import TeacherOutputs


def forward_backward(
    model: nn.Module,
    images: torch.Tensor,
    targets: TeacherOutputs,
    owner: torch.Tensor,
    config: DistillConfig,
    step: int,
    dist: Dist,
    dtype: torch.dtype,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Forward and backward pass of this process's images (B, 3, S, S), in `accumulate` parts.

    owner (B,): index of the teacher whose data an image is from, or -1. Returns this process's share of the numbers for
    the log, which add up over processes, and the factor that the gradients still need. The weights sum to 1 over the
    images of all parts and processes, so their sum is known only after the last part. (The published training
    normalises over each process's own images.)
    """
    size = len(images) // config.accumulate
    pairs = config.batch_size * len(targets)
    draws = torch.rand(
        config.batch_size, len(targets), generator=torch.Generator().manual_seed(step_seed(config.seed, step))
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
                name: {kind: token_loss(predictions[name][kind], value[rows]) for kind, value in types.items()}
                for name, types in targets.items()
            }
            per_image = teacher_losses(losses)
            mask = teacher_mask(
                per_image,
                config.sharing,
                owner[rows],
                generic_index(tuple(targets)),
                config.drop_probability,
                draws[rows],
            )
            loss = (mask * per_image).sum()
            (loss * (dist.world_size / pairs)).backward()  # gradients are averaged over processes
        count += mask.sum()
        sums.append(_sums(loss, losses, mask))
    total = sum_over_ranks(count)
    numbers = {name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]}
    for name in numbers:
        numbers[name] /= total if name == "loss" or name.endswith("/coefficient") else config.batch_size
    return numbers, pairs / total


def _sums(loss: torch.Tensor, losses: dict[str, dict[str, TokenLoss]], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The numbers for the log, summed over images."""
    sums = {"loss": loss.detach()}
    for column, (name, types) in enumerate(losses.items()):
        for kind, value in types.items():
            sums[f"{name}/{kind}/cosine"] = value.cosine.detach().sum()
            sums[f"{name}/{kind}/smooth_l1"] = value.smooth_l1.detach().sum()
        sums[f"{name}/coefficient"] = mask[:, column].sum()
        sums[f"{name}/dropped"] = (mask[:, column] == 0).float().sum()
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
