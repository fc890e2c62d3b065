"""Small sets of labelled photos whose labels can be learned: what is bright is near, red, or of the first class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

K = [[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]]


def picture(rng: np.random.Generator, width: int = 64, height: int = 48) -> np.ndarray:
    """(H, W, 3) uint8: a dark picture with a bright rectangle."""
    rgb = rng.integers(20, 60, (height, width, 3)).astype(np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    rgb[top : top + height // 2, left : left + width // 2] = rng.integers(180, 240, 3)
    return rgb


def write_depth_set(root: Path, count: int = 8, seed: int = 0) -> Path:
    """`room/` with an index.jsonl: 1 m where it is bright, else 3 m."""
    rng = np.random.default_rng(seed)
    (root / "room").mkdir(parents=True)
    rows = []
    for number in range(count):
        rgb = picture(rng)
        Image.fromarray(rgb).save(root / f"room/{number:04d}.jpg", quality=95)
        depth = np.where(rgb.max(2) > 120, 1000, 3000).astype(np.uint16)
        Image.fromarray(depth).save(root / f"room/{number:04d}.png")
        row = {"file": f"room/{number:04d}.png", "kind": "rgbd", "scale": "metric", "K": K, "tags": ["indoor"]}
        rows.append(json.dumps(row))
    (root / "index.jsonl").write_text("\n".join(rows) + "\n")
    return root


def write_mask_set(root: Path, count: int = 8, seed: int = 0) -> Path:
    """images/, masks/ and classes.txt: "thing" where it is bright, else "ground"."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        rgb = picture(rng)
        Image.fromarray(rgb).save(root / f"images/{number:04d}.jpg", quality=95)
        Image.fromarray((rgb.max(2) > 120).astype(np.uint8)).save(root / f"masks/{number:04d}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


def write_class_set(root: Path, count: int = 8, seed: int = 0) -> Path:
    """Folders blue/ and red/ of pictures in that colour."""
    rng = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (0, "red")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            rgb = rng.integers(0, 90, (48, 64, 3)).astype(np.uint8)
            rgb[..., channel] += 120
            Image.fromarray(rgb).save(root / name / f"{number:04d}.jpg", quality=95)
    return root
