"""Class maps as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.io.png import class_colors, class_overlay, write_class_png


def test_generated_colours_are_pascal_vocs_and_distinct() -> None:
    colors = class_colors(256)
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[20].tolist() == [0, 64, 128]  # tvmonitor
    assert len(np.unique(colors, axis=0)) == 256
    with pytest.raises(ValueError, match="257"):
        class_colors(257)


def test_pixel_values_are_class_numbers(tmp_path: Path) -> None:
    classes = np.random.default_rng(1).integers(0, 150, (11, 13))
    write_class_png(tmp_path / "c.png", classes, class_colors(150))
    image = Image.open(tmp_path / "c.png")
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), classes)
    assert np.array_equal(np.asarray(image.convert("RGB")), class_colors(150)[classes])
    with pytest.raises(ValueError, match="below the 20 colours"):
        write_class_png(tmp_path / "d.png", classes, class_colors(20))


def test_overlay_mixes_inside_and_darkens_borders() -> None:
    rgb = np.full((6, 6, 3), 100, np.uint8)
    classes = np.zeros((6, 6), np.int64)
    classes[:, 3:] = 1
    picture = class_overlay(rgb, classes, np.array([[200, 0, 0], [0, 0, 200]], np.uint8))
    assert picture[2, 0].tolist() == [150, 50, 50]
    assert picture[2, 5].tolist() == [50, 50, 150]
    assert picture[2, 3].tolist() == [20, 20, 60]
