"""The distillation loss of DUNE, per image, teacher and token type, and which teachers an image trains.

Source: arXiv 2503.14405, sections 3 and 3.2 (data sharing); UNIC (arXiv 2408.05088), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dune_cli.errors import UserError
from dune_cli.training.distill.config import STRATEGIES

GENERIC = "dinov2"  # the teacher whose images are generic (docs/models/distillation.md)


@dataclass(frozen=True)
class TokenLoss:
    """Losses (B,) of one token type of one teacher: 1 - cosine, and smooth L1."""

    cosine: torch.Tensor
    smooth_l1: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """(B,) 0.5 (1 - cosine) + 0.5 smooth L1."""
        return 0.5 * self.cosine + 0.5 * self.smooth_l1


def token_loss(prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None) -> TokenLoss:
    """Losses of predictions and standardised targets, both (B, D) [CLS] or (B, N, D) [patches, averaged over N].

    valid (B, N): weights of the patches; an image without valid patches has the loss 0, also of its CLS. Computed in
    float32 under any autocast type. Smooth L1 has beta 1 and is averaged over channels. ValueError for shapes that
    differ.
    """
    prediction, target = prediction.float(), target.float()
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
    smooth_l1 = F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0).mean(-1)
    if valid is None:
        return TokenLoss(cosine.mean(1), smooth_l1.mean(1)) if cosine.ndim == 2 else TokenLoss(cosine, smooth_l1)
    if cosine.ndim == 1:
        taught = speaks(valid).to(cosine.dtype)
        return TokenLoss(cosine * taught, smooth_l1 * taught)
    weights = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return TokenLoss((cosine * weights).sum(1), (smooth_l1 * weights).sum(1))


def speaks(valid: torch.Tensor) -> torch.Tensor:
    """(B, N) weights of a teacher's patches -> (B) bool: whether the teacher says anything about the image."""
    return valid.sum(1) > 0


def teacher_losses(token_losses: dict[str, dict[str, TokenLoss]]) -> torch.Tensor:
    """(B, T) loss of each teacher, averaged over its token types; teachers in the order of the dictionary."""
    return torch.stack(
        [torch.stack([loss.total for loss in types.values()]).mean(0) for types in token_losses.values()], dim=1
    )


def teacher_mask(
    losses: torch.Tensor,
    strategy: str,
    owner: torch.Tensor | None = None,
    generic_teacher: int = 0,
    drop_probability: float = 0.5,
    draws: torch.Tensor | None = None,
    spoken: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T) ones where an image trains a teacher, zeros elsewhere; no gradient.

    losses (B, T): of each image and teacher. owner (B,): index of the teacher whose data an image is from, which
    `own_data` and `own+generic_data` need (ValueError). generic_teacher: the one whose images train all teachers.
    `lowest_loss` keeps the teacher with the highest loss and drops each other one with `drop_probability`,
    independently per image, by the uniform numbers `draws` (B, T). spoken (B, T) bool: whether the teacher says
    anything about the image; where not, the image does not train it, whatever the strategy. None: all do.
    """
    losses = losses.detach()
    rows = torch.arange(len(losses), device=losses.device)
    if spoken is not None:
        heard = losses.masked_fill(~spoken, -torch.inf)
        return spoken * teacher_mask(heard, strategy, owner, generic_teacher, drop_probability, draws)
    if strategy == "none":
        return torch.ones_like(losses)
    if strategy == "lowest_loss":
        if draws is None:
            draws = torch.rand(losses.shape, device=losses.device)
        mask = (draws.to(losses.device) >= drop_probability).to(losses.dtype)
        mask[rows, losses.argmax(1)] = 1
        return mask
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown sharing strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    if owner is None or bool((owner < 0).any()):
        raise ValueError(f"the strategy {strategy!r} needs the teacher that each image came from")
    mask = torch.zeros_like(losses)
    mask[rows, owner] = 1
    if strategy == "own+generic_data":
        mask[owner == generic_teacher] = 1
    return mask


def coefficients(
    losses: torch.Tensor,
    strategy: str,
    owner: torch.Tensor | None = None,
    generic_teacher: int = 0,
    drop_probability: float = 0.5,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """(B, T) weights without gradient that sum to 1 over the batch; arguments as for `teacher_mask`."""
    draws = torch.rand(losses.shape, generator=generator) if generator is not None else None
    mask = teacher_mask(losses, strategy, owner, generic_teacher, drop_probability, draws)
    return mask / mask.sum()


def check_owners(strategy: str, teachers: Sequence[str], owners: Sequence[str | None]) -> None:
    """UserError where a strategy needs tags that `--data` lacks, or would leave a teacher without any image."""
    if not strategy.startswith("own"):
        return
    example = f"--data {teachers[0]}=photos/"
    if None in owners:
        raise UserError(f"--sharing {strategy} needs every --data source tagged with its teacher, such as {example}")
    missing = [name for name in teachers if name not in owners]
    generic = teachers[generic_index(teachers)]
    if strategy == "own_data" and missing:
        raise UserError(
            f"--sharing own_data: no --data is tagged for {', '.join(missing)}; tag some, such as {example}"
        )
    if strategy == "own+generic_data" and missing and generic not in owners:
        raise UserError(f"--sharing {strategy}: tag generic images for all teachers, --data {generic}=photos/")


def generic_index(teachers: Sequence[str]) -> int:
    """The index of the teacher whose images count as generic: dinov2 if present, else the first."""
    return list(teachers).index(GENERIC) if GENERIC in teachers else 0
