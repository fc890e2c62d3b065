"""From pixels to patch tokens: checks of the sizes, normalisation, padding, patch embedding, position embeddings."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
OFFSET = 0.1  # of the position policy "offset"


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of B images.

    cls (B, D), registers (B, R, D) with R = 0 where there are none, patches (B, N, D) in row-major order over
    grid = (h, w), N = h·w. All float32.
    """

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]

    def map(self) -> torch.Tensor:
        """The patch tokens as a map (B, h, w, D)."""
        return self.patches.unflatten(1, self.grid)


def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


@functools.lru_cache(maxsize=64)
def _kept_per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return _per_channel(values, device)


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (x - mean) / std per channel."""
    channels = _per_channel if torch.compiler.is_exporting() else _kept_per_channel
    return (images - channels(mean, images.device)) / channels(std, images.device)


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


def resample(pos_embed: torch.Tensor, grid: tuple[int, int], policy: str) -> torch.Tensor:
    """pos_embed (1, 1 + M², D) -> (1, 1 + h·w, D) in float32; the CLS position is kept.

    `policy` is "offset" or "antialias" (see VitConfig). Nothing is resampled for the native M x M grid.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return pos_embed
    cls, patches = pos_embed.float().split([1, side * side], 1)
    if torch.compiler.is_exporting():  # any grid: F.interpolate fixes a factor
        return torch.cat([cls, _by_matrices(patches[0], grid, side, policy == "antialias")[None]], 1)
    cells = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if policy == "antialias":
        cells = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False, antialias=True)
    elif policy == "offset":
        cells = _by_factor(cells, grid, ((grid[0] + OFFSET) / side, (grid[1] + OFFSET) / side))
    else:
        raise ValueError(f"unknown position policy {policy!r}; allowed: offset, antialias")
    return torch.cat([cls, cells.flatten(2).transpose(1, 2)], 1)


def bicubic_weights(count: int, cells: int, antialias: bool) -> torch.Tensor:
    """(count, cells): what each of `count` samples along an axis takes of its `cells`, by `resample`'s two policies.

    Keys, "Cubic convolution interpolation", 1981, a = -0.75 with the border repeated; with `antialias` a = -0.5, the
    kernel as wide as a step where that is more than a cell, weights renormalised at the border. As F.interpolate does.
    """
    step = cells / count if antialias else cells / (count + OFFSET)
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * step - 0.5
    places = torch.arange(cells, dtype=torch.float64)
    if antialias:
        width = torch.ones(1, dtype=torch.float64) * step
        weights = _cubic((places - centres[:, None]) / width.clamp(min=1), -0.5)
        return (weights / weights.sum(1, keepdim=True)).float()
    first = centres.floor()
    weights = torch.zeros_like(centres[:, None] * places)
    for neighbour in (-1, 0, 1, 2):
        place = first + neighbour
        hit = place.clamp(0, cells - 1)[:, None] == places
        weights = weights + hit * _cubic(place - centres, -0.75)[:, None]
    return weights.float()


def _by_matrices(cells: torch.Tensor, grid: tuple[int, int], side: int, antialias: bool) -> torch.Tensor:
    """cells (side², D) -> (h·w, D); the native grid as it is, as in `resample`."""
    rows, columns = (torch.arange(count) for count in grid)
    native = (torch.full((1,), grid[0]) == side) & (torch.full((1,), grid[1]) == side)
    along = [
        torch.where(native, (places[:, None] == torch.arange(side)).float(), bicubic_weights(count, side, antialias))
        for places, count in zip((rows, columns), grid)
    ]
    tall = (along[0] @ cells.reshape(side, -1)).unflatten(1, (side, -1))
    return (along[1] @ tall).flatten(0, 1)


def _cubic(x: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' kernel of support 2."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _by_factor(cells: torch.Tensor, grid: tuple[int, int], factor: tuple[float, float]) -> torch.Tensor:
    """Bicubic resampling that samples with `factor` itself, not with one recomputed from the sizes."""
    out = F.interpolate(cells, scale_factor=factor, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    if tuple(out.shape[-2:]) != grid:
        raise AssertionError(f"resampling gave {tuple(out.shape[-2:])} cells instead of {grid}")
    return out


def pad_to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (B, 3, H', W'), sides rounded up to multiples of `patch`.

    The new pixels hold the ImageNet mean, which is 0 once the network has normalised. Of p missing pixels floor(p/2)
    go left (top), the rest right (bottom) (docs/models/dinov2-heads.md, "Input").
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (B, 3, H, W), RGB in [0, 1]; received {tuple(images.shape)}")
    height, width = images.shape[-2:]
    missing_height, missing_width = -height % patch, -width % patch
    if not missing_height and not missing_width:
        return images
    top, left = missing_height // 2, missing_width // 2
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    padded = mean.repeat(images.shape[0], 1, height + missing_height, width + missing_width)
    padded[..., top : top + height, left : left + width] = images
    return padded
