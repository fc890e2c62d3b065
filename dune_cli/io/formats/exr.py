"""OpenEXR: a depth map as 32-bit floats.

Own code, because OpenCV's wheels come with and without an EXR writer.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.io.formats import DepthData
from dune_cli.io.outputs import atomic_path


def write_depth(path: Path, depth: DepthData) -> dict[str, Any]:
    """The depth in metres, NaN where there is none."""
    write_exr(path, depth.depth)
    return {"invalid": "NaN"}


def write_exr(path: str | Path, depth: np.ndarray) -> None:
    """Writes (H, W) float32 as an OpenEXR file with one channel, `Y` (as OpenCV has it), uncompressed.

    Written here because OpenCV's wheels come with and without an EXR writer. Format: OpenEXR, "OpenEXR File Layout".
    """
    if depth.ndim != 2 or 0 in depth.shape:
        raise ValueError(f"a depth map is (H, W), got {depth.shape}")
    height, width = depth.shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel = b"Y\0" + struct.pack("<i4B2i", 2, 0, 0, 0, 0, 1, 1) + b"\0"  # 2: 32-bit float; sampled at every pixel
    attributes = (
        ("channels", "chlist", channel),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    head = struct.pack("<2i", 20000630, 2)  # magic number; version 2, single-part scan lines
    for name, kind, value in attributes:
        head += f"{name}\0{kind}\0".encode("ascii") + struct.pack("<i", len(value)) + value
    head += b"\0"
    rows = np.zeros(height, [("y", "<i4"), ("size", "<i4"), ("z", "<f4", (width,))])
    rows["y"], rows["size"], rows["z"] = np.arange(height), 4 * width, depth
    offsets = len(head) + 8 * height + rows.itemsize * np.arange(height, dtype="<u8")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        file.write(offsets.astype("<u8").tobytes())
        file.write(rows.tobytes())
