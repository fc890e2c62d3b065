"""Teacher norm: a teacher's outputs standardised by running statistics. Source: arXiv 2503.14405; UNIC, section 3.2."""

from __future__ import annotations

import torch
import torch.distributed as dist

from dune_cli.models.projector import TokenNorm


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
