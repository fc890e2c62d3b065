"""Teacher norms, which standardise teacher outputs: running mean and deviation (DUNE), or PHI-S.

Running statistics: arXiv 2503.14405; UNIC (arXiv 2408.05088), section 3.2. PHI-S: Ranzinger et al., arXiv 2410.01680,
where one rotation gives every channel the same variance, then one scale serves all. There the rotation is a Hadamard
matrix after a PCA, which exists for some widths only. Here plane rotations bring one channel after the other to the
mean variance (Bendel & Mickey, 1978), for any width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dune_cli.models.distilled_encoder import TokenNorm
from dune_cli.training.common.dist import sum_over_ranks
from dune_cli.training.common.loop import cosine
from dune_cli.training.distill.teacher_outputs import TeacherOutputs, TokenWidths, token_weights


def new_teacher_norms(widths: TokenWidths, kind: str) -> nn.ModuleDict:
    """A norm for every teacher and token type. kind: "mean-std" (DUNE) or "phi-s"."""
    make = {"mean-std": RunningTokenNorm, "phi-s": PhiSNorm}[kind]
    return nn.ModuleDict(
        {name: nn.ModuleDict({t: make(width) for t, width in of.items()}) for name, of in widths.items()}
    )


def norm_momentum(step: int, steps: int) -> float:
    """Momentum of the running statistics: a cosine from 1.0 to 0.001 over all steps, without warm-up."""
    return cosine(1.0, 1e-3, step, steps)


class RunningTokenNorm(TokenNorm):
    """A `TokenNorm` that follows a teacher's outputs in training.

    In training the batch is standardised by its own statistics (over all processes; unbiased deviation), which the
    buffers follow: buffer = buffer (1 - m) + batch m. In evaluation, and with momentum 0, the buffers standardise.
    """

    @torch.no_grad()
    def forward(
        self, outputs: torch.Tensor, momentum: float = 0.0, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """outputs (B, D) or (B, N, D) -> standardised float32 outputs of the same shape.

        weights (B) or (B, N): which tokens count in the statistics; None: all. A batch where fewer than two count is
        standardised by the buffers, which it leaves as they are.
        """
        outputs = outputs.float()
        if not self.training or momentum == 0:
            return super().forward(outputs)
        if weights is not None and sum_over_ranks((weights > 0).float().sum()) < 2:
            return super().forward(outputs)
        rows = outputs.reshape(-1, outputs.shape[-1])
        mean, std = batch_statistics(rows if weights is None else rows[weights.reshape(-1) > 0])
        self.mean.lerp_(mean, momentum)
        self.std.lerp_(std, momentum)
        return (outputs - mean) / std.clamp(min=self.MIN_STD)

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The inverse of `forward` in evaluation."""
        return standardised * self.std.clamp(min=self.MIN_STD) + self.mean


def batch_statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation (D) of rows (M, D) over all processes, in two passes."""
    count = torch.tensor(float(rows.shape[0]), device=rows.device)
    mean = sum_over_ranks(rows.sum(0)) / sum_over_ranks(count)
    squares = sum_over_ranks((rows - mean).square().sum(0))
    return mean, (squares / (sum_over_ranks(count) - 1).clamp_min(1)).sqrt()


class PhiSNorm(nn.Module):
    """(x - mean) · rotationᵀ · scale. Fitted once, before training; the same in training and evaluation."""

    mean: torch.Tensor
    rotation: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rotation", torch.eye(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def forward(
        self, outputs: torch.Tensor, momentum: float = 0.0, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """outputs (..., D) -> standardised float32, same shape. The others: for the interface of RunningTokenNorm."""
        return (outputs.float() - self.mean) @ self.rotation.T * self.scale

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The inverse of `forward`."""
        return (standardised / self.scale) @ self.rotation + self.mean


def fit_phi_s(norms: nn.ModuleDict, batches: Iterable[TeacherOutputs]) -> None:
    """Fits every PHI-S norm to the teacher outputs of a few batches."""
    moments = {(name, t): PhiSMoments(len(norm.mean)) for name, types in norms.items() for t, norm in types.items()}
    for outputs in batches:
        for (name, token_type), accumulated in moments.items():
            weights, tokens = token_weights(outputs[name], token_type), outputs[name][token_type]
            accumulated.add(tokens if weights is None else tokens[weights > 0])
    for (name, token_type), accumulated in moments.items():
        accumulated.fit(norms[name][token_type])


class PhiSMoments:
    """Accumulates mean and covariance of a teacher's outputs over batches and processes."""

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

    def fit(self, norm: PhiSNorm) -> None:
        """Sets a norm's buffers."""
        device = norm.mean.device
        count, total, outer = (sum_over_ranks(part.to(device)).cpu() for part in (self.count, self.sum, self.outer))
        count = count.clamp(min=1)  # of a gated teacher no token may count
        mean = total / count
        covariance = outer / count - torch.outer(mean, mean)
        norm.mean.copy_(mean)
        norm.rotation.copy_(balancing_rotation(covariance))
        norm.scale.copy_(covariance.diagonal().mean().clamp_min(1e-12).rsqrt())


def balancing_rotation(covariance: torch.Tensor) -> torch.Tensor:
    """An orthogonal Q (D, D) for which all diagonal entries of Q C Qᵀ are the mean variance. float64."""
    c = covariance.double().clone()
    width = len(c)
    q = torch.eye(width, dtype=torch.float64)
    target = c.diagonal().mean()
    remaining = torch.ones(width, dtype=torch.bool)
    for _ in range(width - 1):
        variances = torch.where(remaining, c.diagonal(), target)
        low, high = int(variances.argmin()), int(variances.argmax())
        if low == high:
            break
        # the angle t with c_ll cos² t + c_hh sin² t + c_lh sin 2t = target brings `low` to the target
        cll, chh, clh = c[low, low], c[high, high], c[low, high]
        root = (clh**2 - (cll - target) * (chh - target)).clamp_min(0).sqrt()
        tangent = (target - cll) / (clh + (root if clh >= 0 else -root)) if abs(clh) + root > 0 else torch.zeros(())
        cos = 1 / (1 + tangent**2).sqrt()
        rotation = torch.stack([torch.stack([cos, cos * tangent]), torch.stack([-cos * tangent, cos])])
        plane = [low, high]
        c[plane] = rotation @ c[plane]
        c[:, plane] = c[:, plane] @ rotation.T
        q[plane] = rotation @ q[plane]
        remaining[low] = False
    return q
