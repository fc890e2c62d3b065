"""Depth maps that users bring: PNG with its scale, NPZ, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.depth_files import read_depth
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.png import save_png

VALUES = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) * 40


def test_a_png_in_millimetres_or_at_any_scale(tmp_path: Path) -> None:
    save_png(tmp_path / "d.png", VALUES)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), VALUES / 1000)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 5000), VALUES / 5000)


def test_the_json_of_dune_depth_says_the_scale(tmp_path: Path) -> None:
    save_png(tmp_path / "d.png", VALUES)
    facts = {"schema": "dune.depth/1", "file": "d.png", "png_scale": 256.0}
    (tmp_path / "d.json").write_text(json.dumps(facts))
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), VALUES / 256)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 100), VALUES / 100)  # the user's word comes first
    for other in ({**facts, "file": "other.png"}, {"png_scale": 256}, [1]):
        (tmp_path / "d.json").write_text(json.dumps(other))
        np.testing.assert_allclose(read_depth(tmp_path / "d.png"), VALUES / 1000)


def test_an_npz_holds_metres(tmp_path: Path) -> None:
    write_npz(tmp_path / "d.npz", depth=np.float32(VALUES / 1000))
    np.testing.assert_allclose(read_depth(tmp_path / "d.npz"), VALUES / 1000, rtol=1e-6)
    with pytest.raises(UserError, match="holds metres"):
        read_depth(tmp_path / "d.npz", 1000)


def test_what_is_no_depth_map(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npz").write_text("no archive")
    write_npz(tmp_path / "other.npz", z=VALUES)
    write_npz(tmp_path / "shape.npz", depth=np.zeros((2, 3, 4)))
    for name, words in (
        ("rgb.png", "16-bit grey PNG"),
        ("grey.png", "16-bit grey PNG"),
        ("text.png", "16-bit grey PNG"),
        ("text.npz", 'array "depth"'),
        ("other.npz", 'array "depth"'),
        ("shape.npz", "(2, 3, 4)"),
        ("depth.exr", "allowed: .png .npz"),
        ("absent.png", "no such file"),
        ("absent.npz", "no such file"),
    ):
        with pytest.raises(UserError) as error:
            read_depth(tmp_path / name)
        assert words in str(error.value) and name in str(error.value)
