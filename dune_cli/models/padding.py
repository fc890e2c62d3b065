"""Images of any size for a network that wants whole patches: centred padding with the network's zero."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dune_cli.models.pixels import IMAGENET_MEAN


def pad_to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (B, 3, H', W'), sides rounded up to multiples of `patch`.

    The new pixels hold the ImageNet mean, which is 0 once the network has normalised. Of p missing pixels floor(p/2)
    go left (top), the rest right (bottom) (spec 7, "Input").
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
    missing_height, missing_width = (-side % patch for side in images.shape[-2:])
    if not missing_height and not missing_width:
        return images
    left, top = missing_width // 2, missing_height // 2
    mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    padded = F.pad(images - mean, (left, missing_width - left, top, missing_height - top)) + mean
    inside = padded[..., top : top + images.shape[-2], left : left + images.shape[-1]]
    inside.copy_(images)  # subtracting and adding the mean rounds
    return padded
