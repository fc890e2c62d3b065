"""Depth maps as files: what another program reads is what was meant."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dune_cli.io.depth_files import COLORMAPS, colored, to_png16
from dune_cli.io.formats.exr import write_exr
from dune_cli.io.png import save_png


@given(st.floats(0.002, 1e5), st.integers(0, 9))
def test_png_depth_comes_back_within_half_a_step(farthest: float, seed: int) -> None:
    depth = (np.random.default_rng(seed).random((5, 7)) * farthest).astype(np.float32)
    depth[2, 3] = farthest
    pixels, scale = to_png16(depth)
    step = 1 / scale
    assert np.abs(pixels[depth > step] / scale - depth[depth > step]).max() <= 0.501 * step + 1e-6 * farthest
    assert scale == (1000 if farthest <= 65.535 else 256 if farthest <= 65535 / 256 else scale)
    assert pixels.max() <= 65535
    assert (pixels > 0).all() or (depth <= 0).any()


def test_png_marks_what_has_no_depth(tmp_path: Path) -> None:
    depth = np.array([[1.5, np.nan, -2.0], [np.inf, 0.0, 1e-4]], np.float32)
    pixels, scale = to_png16(depth)
    assert pixels.tolist() == [[1500, 0, 0], [0, 0, 1]]
    save_png(tmp_path / "d.png", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "d.png")), pixels)
    assert to_png16(np.full((2, 2), np.nan, np.float32))[0].max() == 0
    assert scale == 1000


def read_exr(path: Path) -> np.ndarray:
    """Reads what write_exr may write, by the format's own description."""
    content = path.read_bytes()
    assert struct.unpack_from("<2i", content) == (20000630, 2)
    at, attributes = 8, {}
    while content[at]:
        name, _, rest = content[at:].partition(b"\0")
        kind, _, rest = rest.partition(b"\0")
        (size,) = struct.unpack_from("<i", rest)
        attributes[name.decode()] = (kind.decode(), rest[4 : 4 + size])
        at += len(name) + len(kind) + 6 + size
    at += 1
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"][1])
    assert attributes["compression"][1] == b"\0"
    assert attributes["channels"] == ("chlist", b"Y\0" + struct.pack("<4i", 2, 0, 1, 1) + b"\0")
    rows = []
    for offset in struct.unpack_from(f"<{bottom - top + 1}Q", content, at):
        y, size = struct.unpack_from("<2i", content, offset)
        assert (y, size) == (top + len(rows), 4 * (right - left + 1))
        rows.append(np.frombuffer(content, "<f4", right - left + 1, offset + 8))
    return np.stack(rows)


def test_exr_holds_the_floats(tmp_path: Path) -> None:
    depth = np.random.default_rng(1).random((5, 7), np.float32)
    depth[1, 2] = np.nan
    write_exr(tmp_path / "d.exr", depth)
    assert np.array_equal(read_exr(tmp_path / "d.exr"), depth, equal_nan=True)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        write_exr(tmp_path / "d.exr", depth[0])


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_near_is_bright_and_nothing_is_black(colormap: str) -> None:
    depth = np.array([[1.0, 2.0], [8.0, np.nan]], np.float32)
    picture = colored(depth, colormap).astype(int)
    assert picture.shape == (2, 2, 3)
    assert picture[1, 1].tolist() == [0, 0, 0]
    if colormap != "turbo":  # which is dark at both ends
        assert picture[0, 0].sum() > picture[0, 1].sum() > picture[1, 0].sum()
    else:
        assert picture[0, 0, 0] > picture[0, 0, 2]  # near is red


def test_a_picture_of_nothing_or_one_depth() -> None:
    assert colored(np.full((2, 2), np.nan, np.float32), "turbo").max() == 0
    assert len(np.unique(colored(np.full((2, 2), 3.0, np.float32), "grey"))) == 1
    with pytest.raises(ValueError, match="rainbow"):
        colored(np.ones((2, 2), np.float32), "rainbow")
