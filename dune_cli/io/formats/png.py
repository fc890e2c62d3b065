"""PNG: a depth map as 16-bit grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dune_cli.io.depth_files import to_png16
from dune_cli.io.formats import DepthData
from dune_cli.io.png import save_png


def write_depth(path: Path, depth: DepthData) -> dict[str, Any]:
    """Depth times `png_scale`, 0 where there is none."""
    pixels, scale = to_png16(depth.depth)
    save_png(path, pixels)
    return {"png_scale": scale, "invalid": 0}
