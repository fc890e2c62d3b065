"""More than 8 bits a channel: scaled by what the file holds, told in a note, the same for every file of a camera."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.photos import read_header, read_photo


@pytest.fixture(autouse=True)
def _new_command() -> None:
    console.set_quiet(False)


@pytest.fixture(scope="module")
def rgb(example_photos: Path) -> np.ndarray:
    """(64, 96, 3) float64 in [0, 1], in which 0 and 1 occur."""
    small = np.asarray(Image.open(example_photos / "coffee.png").convert("RGB").resize((96, 64)), np.float64)
    return (small - small.min()) / (small.max() - small.min())


@pytest.fixture(scope="module")
def grey(rgb: np.ndarray) -> np.ndarray:
    values = rgb.mean(-1)
    return (values - values.min()) / (values.max() - values.min())


def write(path: Path, values: np.ndarray) -> Path:
    """By OpenCV, which takes BGR(A)."""
    if values.ndim == 3:
        values = values[..., [2, 1, 0, *range(3, values.shape[-1])]]
    assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("colours", [False, True])
def test_fewer_bits_in_a_file_of_16(
    ending: str, bits: int, colours: bool, rgb: np.ndarray, grey: np.ndarray, tmp_path: Path, capsys
) -> None:
    wanted = rgb if colours else np.repeat(grey[..., None], 3, axis=2)
    values = rgb if colours else grey
    path = write(tmp_path / f"p{ending}", np.round(values * (2**bits - 1)).astype(np.uint16))
    found = read_photo(path).rgb
    assert np.abs(found - 255 * wanted).max() <= 1
    note = capsys.readouterr().err
    assert f"{path}: values from 0 to {2**bits - 1} are read as {bits} bits" in note and note.count("\n") == 1


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("colours", [False, True])
def test_full_range_stays_as_it_was(ending: str, colours: bool, rgb: np.ndarray, tmp_path: Path, capsys) -> None:
    values = np.round((rgb if colours else rgb.mean(-1)) * 65535).astype(np.uint16)
    found = read_photo(write(tmp_path / f"p{ending}", values)).rgb
    assert np.array_equal(found if colours else found[..., 0], np.round(values / 257).astype(np.uint8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("low", "high"), [(7200, 8100), (29_315, 31_015), (7200, 7330), (60_000, 61_000)])
def test_counts_of_a_sensor_are_stretched(low: int, high: int, grey: np.ndarray, tmp_path: Path, capsys) -> None:
    values = np.round(low + grey * (high - low)).astype(np.uint16)
    values[0, 0] = 65535 if high > 60_000 else values[0, 0]  # a hot pixel
    path = write(tmp_path / "p.png", values)
    found = read_photo(path).rgb[..., 0]
    assert np.corrcoef(found[1:].ravel(), grey[1:].ravel())[0, 1] > 0.99
    assert len(np.unique(found)) > 100 and found.std() > 0.8 * (min(high - low, 255) * grey).std()
    note = capsys.readouterr().err
    assert re.search(rf"values from {values.min()} to {values.max()}: \d", note) or "are read as" in note
    assert np.array_equal(read_photo(path).rgb[..., 0], found)
    assert capsys.readouterr().err == ""  # told once in a command


def test_noise_of_a_few_counts_is_not_made_a_picture(tmp_path: Path) -> None:
    values = 7500 + np.random.default_rng(0).integers(-4, 5, (64, 96))
    assert np.ptp(read_photo(write(tmp_path / "p.png", values.astype(np.uint16))).rgb) <= 9


def test_a_set_of_one_camera_is_scaled_alike(rgb: np.ndarray, tmp_path: Path) -> None:
    """A darker and a brighter photo of 12 bits keep their brightness."""
    bright, dark = (write(tmp_path / f"{s}.png", np.round(rgb * s).astype(np.uint16)) for s in (4095, 2000))
    ratio = read_photo(dark).rgb.mean() / read_photo(bright).rgb.mean()
    assert ratio == pytest.approx(2000 / 4095, abs=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_colours(dtype: type, rgb: np.ndarray, tmp_path: Path, capsys) -> None:
    found = read_photo(write(tmp_path / "p.tif", (rgb * 1.02 - 0.01).astype(dtype))).rgb  # sharpening overshoots
    assert np.abs(found - 255 * rgb).max() <= 4
    assert found[..., 0].mean() > found[..., 2].mean() + 20  # coffee is red, not blue
    assert capsys.readouterr().err == ""


def test_float_colours_with_alpha_lie_over_white(rgb: np.ndarray, tmp_path: Path) -> None:
    values = np.dstack([rgb, np.ones((64, 96))]).astype(np.float32)
    values[:8, :, 3] = 0
    found = read_photo(write(tmp_path / "p.tif", values)).rgb
    assert (found[:8] == 255).all() and np.abs(found[8:] - 255 * rgb[8:]).max() <= 1


def test_light_without_bounds_gets_a_gamma(rgb: np.ndarray, tmp_path: Path, capsys) -> None:
    light = (rgb**2.2 * 12).astype(np.float32)
    light[3, 3] = 5000  # the sun
    path = write(tmp_path / "p.tif", light)
    found = read_photo(path).rgb
    assert np.corrcoef(found.ravel(), rgb.ravel())[0, 1] > 0.99
    said = r"values from 0 to 5000: 0 to [\d.]+ \(the 99.5th percentile\) become black to white, with gamma 2.2"
    assert re.search(said, capsys.readouterr().err)


def test_degrees_are_stretched(grey: np.ndarray, tmp_path: Path, capsys) -> None:
    path = tmp_path / "p.tif"
    Image.fromarray((293 + 12 * grey).astype(np.float32)).save(path)
    assert np.corrcoef(read_photo(path).rgb[..., 0].ravel(), grey.ravel())[0, 1] > 0.99
    assert "values from 293 to 305: 29" in capsys.readouterr().err


def test_values_that_are_not_finite(rgb: np.ndarray, tmp_path: Path, capsys) -> None:
    values = rgb.astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    found = read_photo(write(tmp_path / "p.tif", values)).rgb
    assert found[0, 0].max() == 0 and found[0, 1].min() == 255 and found[0, 2].max() == 0
    assert np.abs(found[1:] - 255 * rgb[1:]).max() <= 1
    assert "9 values that are not finite" in capsys.readouterr().err
    write(tmp_path / "none.tif", np.full((32, 32, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="no finite value"):
        read_photo(tmp_path / "none.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_orientation_of_a_tiff(dtype: type, rgb: np.ndarray, tmp_path: Path) -> None:
    path, values = tmp_path / "p.tif", (rgb * (1 if dtype is np.float32 else 65535)).astype(dtype)
    assert cv2.imwrite(str(path), values[..., ::-1], [cv2.IMWRITE_TIFF_RESUNIT, 2, cv2.IMWRITE_TIFF_XDPI, 72])
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    entries = [first + 2 + 12 * i for i in range(int.from_bytes(data[first : first + 2], "little"))]
    at = next(at for at in entries if data[at : at + 2] == (296).to_bytes(2, "little"))
    data[at : at + 12] = struct.pack("<HHIHH", 274, 3, 1, 6, 0)  # the unit of the resolution becomes an orientation
    path.write_bytes(data)
    photo = read_photo(path)
    assert photo.orientation == 6 and np.abs(photo.rgb - 255 * np.rot90(rgb, -1)).max() <= 1
    header = read_header(path)
    assert header is not None and (header.width, header.height, header.orientation) == (64, 96, 6)


@pytest.mark.parametrize("behind", [False, True])
def test_orientation_of_a_16_bit_png(behind: bool, rgb: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "p.png", np.round(rgb * 65535).astype(np.uint16))
    data = path.read_bytes()
    exif = b"eXIf" + b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 274, 3, 1, 6, 0) + bytes(4)
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    at = data.index(b"IEND") - 4 if behind else 33
    path.write_bytes(data[:at] + chunk + data[at:])
    photo = read_photo(path)
    assert photo.orientation == 6 and np.abs(photo.rgb - 255 * np.rot90(rgb, -1)).max() <= 1


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_cut_off_files_are_one_sentence(keep: float, dtype: type, rgb: np.ndarray, tmp_path: Path, capfd) -> None:
    path = write(tmp_path / "p.tif", (rgb * 60_000).astype(dtype))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_photo(path)
    assert capfd.readouterr().err == ""


def test_formats_of_light_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(60))
    (tmp_path / "b.hdr").write_bytes(b"#?RADIANCE\n" + bytes(60))
    for name, word in (("a.exr", "OpenEXR"), ("b.hdr", "Radiance HDR")):
        with pytest.raises(UserError, match=f"{word} picture, which is not read; save it as a 32-bit float TIFF"):
            read_photo(tmp_path / name)


def test_a_pair_of_12_bits_matches_as_one_of_8(example_photos: Path, tmp_path: Path) -> None:
    """Case 11: in 16 grey levels hardly anything matches."""
    from dune_cli.matchers.registry import load_matcher

    sift = load_matcher("sift", "cpu")
    counts = {}
    for top in (255, 4095):
        photos = []
        for side in ("left", "right"):
            values = np.asarray(Image.open(example_photos / f"motorcycle_{side}.png").convert("L"), np.float64)[
                ::2, ::2
            ]
            scaled = np.round(values / 255 * top).astype(np.uint8 if top == 255 else np.uint16)
            photos.append(read_photo(write(tmp_path / f"{side}{top}.png", scaled)).rgb)
        counts[top] = len(sift.match(*photos).points1)
    assert counts[4095] > 0.9 * counts[255] > 100
