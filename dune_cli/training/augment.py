"""The published augmentation (spec 2, "Recipe"), every draw from a generator that the caller seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities. With `photometric` False only the crop and the flip remain."""

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_kernel_px: int = 9
    blur_sigma_px: tuple[float, float] = (0.1, 5.0)
    blur_probability: float = 0.2
    solarize_threshold: float = 0.5
    solarize_probability: float = 0.2
    photometric: bool = True


def augment(image: torch.Tensor, size_px: int, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """image (3, H, W) uint8 -> (3, size, size) float32 in [0, 1]: crop, flip, then colours, grey, blur, solarise."""
    top, left, height, width = _crop_box(image.shape[-2], image.shape[-1], settings, rng)
    crop = TF.resized_crop(
        image, top, left, height, width, [size_px, size_px], InterpolationMode.BICUBIC, antialias=True
    )
    if rng.random() < 0.5:
        crop = TF.horizontal_flip(crop)
    crop = TF.to_dtype(crop, torch.float32, scale=True)
    return _photometric(crop, settings, rng).clamp(0, 1) if settings.photometric else crop


def _crop_box(height: int, width: int, settings: Augmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """top, left, height, width: ten draws of area and aspect, then the largest centred crop of an allowed aspect."""
    for _ in range(10):
        area = height * width * rng.uniform(*settings.scale)
        aspect = math.exp(rng.uniform(math.log(settings.ratio[0]), math.log(settings.ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, settings.ratio[0]), settings.ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def _photometric(image: torch.Tensor, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    if rng.random() < settings.jitter_probability:
        brightness, contrast, saturation, hue = settings.jitter
        for change in rng.permutation(4):
            if change == 0:
                image = TF.adjust_brightness(image, rng.uniform(1 - brightness, 1 + brightness))
            elif change == 1:
                image = TF.adjust_contrast(image, rng.uniform(1 - contrast, 1 + contrast))
            elif change == 2:
                image = TF.adjust_saturation(image, rng.uniform(1 - saturation, 1 + saturation))
            else:
                image = TF.adjust_hue(image, rng.uniform(-hue, hue))
    if rng.random() < settings.grey_probability:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if rng.random() < settings.blur_probability:
        image = TF.gaussian_blur(image, [settings.blur_kernel_px] * 2, [rng.uniform(*settings.blur_sigma_px)] * 2)
    if rng.random() < settings.solarize_probability:
        image = TF.solarize(image, settings.solarize_threshold)
    return image
