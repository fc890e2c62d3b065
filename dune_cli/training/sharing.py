"""Data-sharing strategies: which teachers an image trains. Source: arXiv 2503.14405, section 3.2."""

from __future__ import annotations

import torch

STRATEGIES = ("none", "lowest_loss", "own_data", "own+generic_data")


def coefficients(
    losses: torch.Tensor,
    strategy: str,
    owner: torch.Tensor | None = None,
    generic_teacher: int = 0,
    drop_probability: float = 0.5,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """(B, T) weights without gradient that sum to 1 over this process's batch.

    losses (B, T): a loss per image and teacher. owner (B): index of the teacher whose data an image came from (needed
    by `own_data` and `own+generic_data`). generic_teacher: the one whose images train all teachers. `lowest_loss`
    keeps the teacher with the highest loss and drops each other one with `drop_probability`, independently per image.
    """
    images, teachers = losses.shape
    if strategy == "none":
        keep = torch.ones_like(losses)
    elif strategy == "lowest_loss":
        draws = torch.rand(images, teachers, generator=generator).to(losses.device)
        keep = (draws >= drop_probability).to(losses.dtype)
        keep[torch.arange(images), losses.detach().argmax(1)] = 1
    elif strategy in ("own_data", "own+generic_data"):
        if owner is None:
            raise ValueError(f"the strategy {strategy!r} needs the teacher that each image came from")
        keep = torch.zeros_like(losses)
        keep[torch.arange(images), owner] = 1
        if strategy == "own+generic_data":
            keep[owner == generic_teacher] = 1
    else:
        raise ValueError(f"unknown sharing strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    return (keep / keep.sum()).detach()
