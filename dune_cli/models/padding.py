"""Images of any size for a network that wants whole patches: centred padding with the network's zero."""

from __future__ import annotations

import torch

from dune_cli.models.pixels import IMAGENET_MEAN


def pad_to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (B, 3, H', W'), sides rounded up to multiples of `patch`.

    The new pixels hold the ImageNet mean, which is 0 once the network has normalised. Of p missing pixels floor(p/2)
    go left (top), the rest right (bottom) (spec 7, "Input").
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
    height, width = images.shape[-2:]
    missing_height, missing_width = -height % patch, -width % patch
    top, left = missing_height // 2, missing_width // 2
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    padded = mean.repeat(len(images), 1, height + missing_height, width + missing_width)
    padded[..., top : top + height, left : left + width] = images
    return padded
