"""Teacher norm: a teacher's outputs standardised by running statistics. Source: arXiv 2503.14405; UNIC, section 3.2."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from dune_cli.models.distilled_encoder import TokenNorm


class RunningTokenNorm(TokenNorm):
    """A `TokenNorm` that follows a teacher's outputs while training.

    In training the batch is standardised by its own statistics (over all ranks; unbiased deviation), which the buffers
    follow: buf = buf (1 - m) + batch m. In evaluation, and with momentum 0, the buffers standardise.
    """

    @torch.no_grad()
    def forward(self, outputs: torch.Tensor, momentum: float = 0.0) -> torch.Tensor:
        """outputs (B, D) or (B, N, D) -> standardised float32 outputs of the same shape."""
        outputs = outputs.float()
        if not self.training or momentum == 0:
            return super().forward(outputs)
        mean, std = batch_statistics(outputs.reshape(-1, outputs.shape[-1]))
        self.mean.lerp_(mean, momentum)
        self.std.lerp_(std, momentum)
        return (outputs - mean) / std.clamp(min=self.MIN_STD)

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The inverse of the evaluation mode's `forward`."""
        return standardised * self.std.clamp(min=self.MIN_STD) + self.mean


def batch_statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation (D) of rows (M, D) over the rows of all ranks, in two passes."""
    count = torch.tensor(float(rows.shape[0]), device=rows.device)
    mean = sum_over_ranks(rows.sum(0)) / sum_over_ranks(count)
    squares = sum_over_ranks((rows - mean).square().sum(0))
    return mean, (squares / (sum_over_ranks(count) - 1).clamp_min(1)).sqrt()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks; the tensor itself outside torchrun."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


# PHI-S standardisation: one rotation that gives every channel the same variance, then one scale for all.
#
# Source: Ranzinger et al., "PHI-S: Distribution balancing for label-free multi-teacher distillation", arXiv 2410.01680.
# There the rotation is a Hadamard matrix after a PCA, which exists for some widths only; here it is built for any width
# from plane rotations that bring one channel after the other to the mean variance (Bendel & Mickey, 1978).


class PhiSNorm(nn.Module):
    """(x - mean) · rotationᵀ · scale. Fitted once, before training; in training and evaluation the same."""

    mean: torch.Tensor
    rotation: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rotation", torch.eye(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def forward(self, outputs: torch.Tensor, momentum: float = 0.0) -> torch.Tensor:
        """outputs (..., D) -> standardised float32, same shape; `momentum` is the other norm's and is not used."""
        return (outputs.float() - self.mean) @ self.rotation.T * self.scale

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The inverse of `forward`."""
        return (standardised / self.scale) @ self.rotation + self.mean


class PhiSFit:
    """Collects the covariance of a teacher's outputs over batches and ranks."""

    def __init__(self, width: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(width, dtype=torch.float64)
        self.outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, outputs: torch.Tensor) -> None:
        """outputs (..., D) of one batch."""
        rows = outputs.detach().reshape(-1, outputs.shape[-1]).double().cpu()
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.outer += rows.T @ rows

    def into(self, norm: PhiSNorm) -> None:
        """Sets a norm's buffers."""
        device = norm.mean.device
        count, total, outer = (sum_over_ranks(part.to(device)).cpu() for part in (self.count, self.sum, self.outer))
        mean = total / count
        covariance = outer / count - torch.outer(mean, mean)
        norm.mean.copy_(mean)
        norm.rotation.copy_(balancing_rotation(covariance))
        norm.scale.copy_(covariance.diagonal().mean().clamp_min(1e-12).rsqrt())


def balancing_rotation(covariance: torch.Tensor) -> torch.Tensor:
    """An orthogonal Q (D, D) for which Q C Qᵀ has its mean variance in every place of the diagonal. float64."""
    c = covariance.double().clone()
    width = len(c)
    q = torch.eye(width, dtype=torch.float64)
    target = c.diagonal().mean()
    unsettled = torch.ones(width, dtype=torch.bool)
    for _ in range(width - 1):
        variances = torch.where(unsettled, c.diagonal(), target)
        low, high = int(variances.argmin()), int(variances.argmax())
        if low == high:
            break
        # the angle t with (c_ll cos² + c_hh sin² + c_lh sin 2t) = target settles `low`
        cll, chh, clh = c[low, low], c[high, high], c[low, high]
        root = (clh**2 - (cll - target) * (chh - target)).clamp_min(0).sqrt()
        tangent = (target - cll) / (clh + (root if clh >= 0 else -root)) if abs(clh) + root > 0 else torch.zeros(())
        cos = 1 / (1 + tangent**2).sqrt()
        turn = torch.stack([torch.stack([cos, cos * tangent]), torch.stack([-cos * tangent, cos])])
        pair = [low, high]
        c[pair] = turn @ c[pair]
        c[:, pair] = c[:, pair] @ turn.T
        q[pair] = turn @ q[pair]
        unsettled[low] = False
    return q
