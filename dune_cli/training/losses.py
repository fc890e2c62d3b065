"""The distillation loss of DUNE: half cosine, half smooth L1, per image, teacher and token type.

Source: arXiv 2503.14405, section 3; UNIC (arXiv 2408.05088), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class TokenLoss:
    """Losses (B) of one token type of one teacher: 1 - cosine, smooth L1, and their half sum."""

    cosine: torch.Tensor
    smooth_l1: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """(B) 0.5 (1 - cos) + 0.5 smooth L1."""
        return 0.5 * self.cosine + 0.5 * self.smooth_l1


def token_loss(prediction: torch.Tensor, target: torch.Tensor) -> TokenLoss:
    """Losses of predictions and standardised targets, both (B, D) [CLS] or (B, N, D) [patches, averaged over N].

    In float32 whatever the autocast type. Smooth L1 has beta 1 and is the mean over channels.
    """
    prediction, target = prediction.float(), target.float()
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
    smooth_l1 = F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0).mean(-1)
    if prediction.ndim == 3:
        cosine, smooth_l1 = cosine.mean(1), smooth_l1.mean(1)
    return TokenLoss(cosine, smooth_l1)


def teacher_losses(token_losses: dict[str, dict[str, TokenLoss]]) -> torch.Tensor:
    """(B, T): each teacher's loss, the mean over its token types; teachers in the order of the dictionary."""
    return torch.stack(
        [torch.stack([loss.total for loss in types.values()]).mean(0) for types in token_losses.values()], dim=1
    )
