"""Depth maps as files: 16-bit PNG, OpenEXR, and a picture in colours."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from dune_cli.io.atomic import atomic_path

MILLIMETRES = 1000.0  # the PNG scale that most tools expect
KITTI = 256.0  # and what reaches 256 m
COLORMAPS = ("turbo", "inferno", "magma", "viridis", "grey")


def to_png16(depth: np.ndarray) -> tuple[np.ndarray, float]:
    """(pixels (H, W) uint16, scale): depth in metres is pixel / scale; 0 where `depth` is not finite and positive.

    The scale is 1000 up to 65.5 m, 256 up to 255.9 m, else what brings the farthest pixel to 65535.
    """
    valid = valid_depth(depth)
    farthest = float(depth[valid].max()) if valid.any() else 0.0
    scale = next((s for s in (MILLIMETRES, KITTI) if farthest * s <= 65535), 65535 / farthest if farthest else 1.0)
    steps = np.rint(np.where(valid, depth, 0).astype(np.float64) * scale)
    return np.where(valid, steps.clip(1, 65535), 0).astype(np.uint16), scale


def valid_depth(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: finite and in front of the camera."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(depth) & (depth > 0)


def colored(depth: np.ndarray, colormap: str) -> np.ndarray:
    """(H, W, 3) uint8: inverse depth between its 2nd and 98th percentile, near bright; black where there is none.

    `colormap` is one of COLORMAPS (ValueError otherwise).
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"unknown colormap {colormap!r}; allowed: {', '.join(COLORMAPS)}")
    valid = valid_depth(depth)
    picture = np.zeros((*depth.shape, 3), np.uint8)
    if not valid.any():
        return picture
    nearness = 1 / depth[valid].astype(np.float64)
    low, high = np.percentile(nearness, [2, 98])
    share = (nearness - low) / (high - low) if high > low else np.full(len(nearness), 0.5)
    grey = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    if colormap == "grey":
        picture[valid] = grey[:, None]
        return picture
    import cv2

    table = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    picture[valid] = cv2.applyColorMap(grey[:, None], table)[:, 0, ::-1]
    return picture


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
