from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from dune_cli.io import exif
from dune_cli.io.photos import read_photo


def _photo(path: Path, size: tuple[int, int], tags: dict[int, object], orientation: int = 1) -> float | None:
    block = Image.Exif()
    block[exif.ORIENTATION] = orientation
    block[exif.EXIF_IFD] = tags
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path, exif=block)
    return read_photo(path).exif_focal_px


def test_35_mm_equivalent_of_a_camera_with_known_sensor(tmp_path: Path) -> None:
    """iPhone 7: 3.99 mm on 1.22 um pixels, 4032 x 3024 of them, sold as 28 mm: by the diagonal, to half a percent."""
    focal = _photo(tmp_path / "p.jpg", (403, 302), {exif.FOCAL_LENGTH_35MM: 28, exif.FOCAL_LENGTH_MM: 3.99})
    assert focal == pytest.approx(3.99e-3 / 1.22e-6 / 10, rel=0.005)


def test_the_focal_length_does_not_turn_with_the_photo(tmp_path: Path) -> None:
    tags = {exif.FOCAL_LENGTH_35MM: 35}
    upright, turned = (_photo(tmp_path / f"{o}.jpg", (300, 200), tags, o) for o in (1, 6))
    assert upright == turned == pytest.approx(35 / 36 * 300, rel=1e-3)  # 3:2, where both definitions agree


@pytest.mark.parametrize(("unit", "per_unit"), [(2, 25.4 / 0.0064), (3, 10 / 0.0064), (None, 25.4 / 0.0064)])
def test_focal_plane_resolution_follows_a_resized_photo(unit: int | None, per_unit: float, tmp_path: Path) -> None:
    """Canon EOS 5D Mark II: 36 mm over 5616 px (6.4 um): 50 mm are 7812 px, a tenth of it at a tenth of the size."""
    tags = {exif.FOCAL_LENGTH_MM: 50.0, exif.FOCAL_PLANE_X_RESOLUTION: IFDRational(round(per_unit * 1000), 1000)}
    tags |= {exif.PIXEL_X: 5616, exif.PIXEL_Y: 3744} | ({} if unit is None else {exif.FOCAL_PLANE_UNIT: unit})
    assert _photo(tmp_path / "p.jpg", (562, 374), tags) == pytest.approx(50 / 0.0064 / 10, rel=2e-3)
    assert _photo(tmp_path / "q.jpg", (374, 562), tags) == pytest.approx(50 / 0.0064 / 10, rel=2e-3)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {exif.FOCAL_LENGTH_35MM: 0},
        {exif.FOCAL_LENGTH_35MM: 20_000},
        {exif.FOCAL_LENGTH_35MM: 1},
        {exif.FOCAL_LENGTH_MM: 4.0},
        {exif.FOCAL_LENGTH_MM: IFDRational(4, 0), exif.FOCAL_PLANE_X_RESOLUTION: 3000.0},
        {exif.FOCAL_LENGTH_MM: 4.0, exif.FOCAL_PLANE_X_RESOLUTION: 9000.0},  # at an unknown size
        {exif.FOCAL_LENGTH_35MM: 28, exif.PIXEL_X: 4032, exif.PIXEL_Y: 3024},  # cropped from 4:3 to 3:2
    ],
)
def test_tags_that_say_nothing_usable(tags: dict[int, object], tmp_path: Path) -> None:
    assert _photo(tmp_path / "p.jpg", (300, 200), tags) is None


@pytest.mark.parametrize("value", [None, "28", "a lens", b"\x00", (28, 1), math.nan, math.inf, -28, IFDRational(0, 0)])
def test_values_of_any_type(value: object) -> None:
    focal = exif.focal_px({exif.FOCAL_LENGTH_35MM: value}, 300, 200)
    assert focal is None or (value == "28" and focal == pytest.approx(28 / 43.267 * 360.555, rel=1e-4))


def test_a_damaged_block_does_not_cost_the_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jpg"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path, exif=b"Exif\0\0MM\0*\0\0\xff\xff" + bytes(range(200)))
    photo = read_photo(path)
    assert photo.rgb.shape == (32, 32, 3) and photo.exif_focal_px is None
