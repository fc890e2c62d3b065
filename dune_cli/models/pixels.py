"""From pixels to patch tokens: checks of the sizes, normalisation, the patch embedding."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (x - mean) / std per channel."""
    return (images - _per_channel(mean, images.device)) / _per_channel(std, images.device)


def grid_of(images: torch.Tensor, patch: int) -> tuple[int, int]:
    """The patch grid (h, w) of images (B, 3, H, W). Raises ValueError with the sizes if it is not a whole one."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % patch or width % patch or not height or not width:
        near = [max(patch, side // patch * patch) for side in (height, width)]
        raise ValueError(
            f"image sides must be multiples of the patch size {patch}; received {height}x{width} (HxW), "
            f"nearest smaller {near[0]}x{near[1]}"
        )
    return height // patch, width // patch


class PatchEmbed(nn.Module):
    """A convolution with stride = kernel = patch, run as one matrix product; no norm after it."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), normalised -> tokens (B, N, D), row-major."""
        columns = _patches(images, self.proj.kernel_size[0])
        return F.linear(columns, self.proj.weight.flatten(1), self.proj.bias)


def _patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """images (B, C, H, W) -> (B, N, C·patch²), channels first inside a patch as in a convolution's weight."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
