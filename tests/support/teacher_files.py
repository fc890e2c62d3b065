"""Three small teachers in the official layouts, and photo folders, for distillation tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from support.human_files import SMPLX, write_small
from support.published_files import Fixture, dinov2_manifest, make_image, make_state_dict, mast3r_tree

NAMES = ("dinov2", "mast3r", "multihmr")


def write_teachers(folder: Path) -> str:
    """Official files of small networks with three patch grids and normalisations; what `--teachers` takes."""
    torch.save(make_state_dict(dinov2_manifest(64, 2, 6, registers=4), 3), folder / "dinov2_vits14_reg4_pretrain.pth")
    mast3r = Fixture("mast3r_mini")
    torch.save(mast3r_tree(mast3r.config["model"], mast3r.state()), folder / "mast3r.pth")
    write_small(folder / "multihmr.pt", SMPLX, cells=4, depth=1, layers=1)
    files = ("dinov2_vits14_reg4_pretrain.pth", "mast3r.pth", "multihmr.pt")
    return ",".join(f"{name}={folder / file}" for name, file in zip(NAMES, files))


def write_photos(folder: Path, source: Path, crops: int = 4, side_px: int = 72) -> Path:
    """Real photos, small: `crops` squares out of each picture in `source`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for path in sorted([*source.glob("*.png"), *source.glob("*.jpg")]):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for index in range(crops):
            side = int(rng.integers(100, min(image.size)))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            square = image.crop((left, top, left + side, top + side)).resize((side_px, side_px))
            square.save(folder / f"{path.stem}_{index}.png")
    return folder


def smooth_photo(path: Path, seed: int, height_px: int = 40, width_px: int = 48) -> Path:
    """A made-up photo."""
    pixels = make_image([1, 3, height_px, width_px], seed)[0].permute(1, 2, 0).numpy()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path
