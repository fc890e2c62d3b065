"""Depth files: 16-bit PNG with dune's JSON beside it, and NPZ."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.io.depth_files import read_depth
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    depth = np.linspace(500, 9000, 48).reshape(6, 8)
    png = io.BytesIO()
    Image.fromarray(depth.astype(np.uint16)).save(png, "png")
    beside = {"schema": "dune.depth/1", "file": "d.png", "png_scale": 2000.0, "width": 8, "height": 6}
    files = {"d.png": png.getvalue(), "d.json": json.dumps(beside).encode()}
    for_npz = io.BytesIO()
    np.savez(for_npz, depth=(depth / 1000).astype(np.float32), K=np.eye(3))
    squeezed = io.BytesIO()
    np.savez_compressed(squeezed, depth=depth / 1000)
    return [
        Sample(files, lambda case: read_depth(case / "d.png"), _is_depth),
        Sample({"d.png": files["d.png"]}, lambda case: read_depth(case / "d.png", 1000.0), _is_depth),
        Sample({"d.npz": for_npz.getvalue()}, lambda case: read_depth(case / "d.npz"), _is_depth),
        Sample({"d.npz": squeezed.getvalue()}, lambda case: read_depth(case / "d.npz"), _is_depth),
    ]


def _is_depth(depth: np.ndarray) -> None:
    assert depth.ndim == 2 and depth.dtype == np.float64 and depth.size
    known = depth[~np.isnan(depth)]
    assert np.isfinite(known).all() and (known >= 0).all() and (known <= 1e7).all()
