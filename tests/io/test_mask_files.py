"""Mask files: which file is the mask of which photo, what it says of which pixel, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.mask_files import find_masks, note_empty, read_mask
from dune_cli.io.orientation import to_stored
from support.odd_photos import save_turned

USED = np.zeros((30, 40), bool)
USED[5:20, 8:30] = True
GREY = np.where(USED, 255, 0).astype(np.uint8)
PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def photo(path: Path, orientation: int = 1) -> Path:
    save_turned(path, PICTURE, orientation)
    return path


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_both_names_in_the_photos_sub_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [photo(tmp_path / "photos" / name) for name in ("a/x.png", "b/x.png", "b/y.png", "b/z.png")]
    first = save(tmp_path / "masks/a/x.png.png", GREY)
    save(tmp_path / "masks/a/x.png", GREY)  # the full name comes first
    second = save(tmp_path / "masks/b/x.png", GREY)
    assert find_masks(tmp_path / "masks", photos) == {photos[0]: first, photos[1]: second}
    assert "no mask of 2 of 4 photos, which are used whole: b/y.png, b/z.png" in capsys.readouterr().err


def test_a_photo_is_not_its_own_mask(tmp_path: Path) -> None:
    one = photo(tmp_path / "x.png")
    with pytest.raises(
        UserError, match=r"has no mask of any of the 1 photos; the one of x\.png is to be named x\.png\.png"
    ):
        find_masks(tmp_path, [one])
    with pytest.raises(UserError, match="is no folder"):
        find_masks(tmp_path / "none", [one])


@pytest.mark.parametrize("form", ["grey", "bits", "rgb", "ones", "soft", "palette", "16 bits", "opaque"])
def test_zero_is_not_used_and_all_else_is(tmp_path: Path, form: str) -> None:
    one, file = photo(tmp_path / "p.png"), tmp_path / "m.png"
    if form == "palette":
        image = Image.fromarray(USED.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 128, 0, 0])
        image.save(file)
    else:
        soft = GREY.copy()
        soft[5, 8:30] = 3
        values = {"ones": USED.astype(np.uint8), "soft": soft, "16 bits": USED.astype(np.uint16) * 65535}.get(
            form, GREY
        )
        save(file, values, {"bits": "1", "rgb": "RGB", "opaque": "RGBA"}.get(form))
    np.testing.assert_array_equal(read_mask(file, one), USED)


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_masks_of_turned_photos(tmp_path: Path, tag: int) -> None:
    """As the photo is stored, which is COLMAP's; upright by its own EXIF; upright by its size."""
    one = photo(tmp_path / "p.png", tag)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "m.png", np.ascontiguousarray(to_stored(GREY, tag))), one), USED
    )
    save_turned(tmp_path / "own.png", np.repeat(GREY[..., None], 3, 2), tag)
    np.testing.assert_array_equal(read_mask(tmp_path / "own.png", one), USED)
    if tag != 3:
        np.testing.assert_array_equal(read_mask(save(tmp_path / "up.png", GREY), one), USED)


@pytest.mark.parametrize(
    "values, sentence",
    [
        (GREY[:20], "has 40 x 20 px and its photo p.png 40 x 30 px"),
        (np.ascontiguousarray(GREY.T), "has 30 x 40 px and its photo p.png 40 x 30 px"),
        (PICTURE, "is a picture and no mask"),
        (np.dstack([PICTURE, GREY]), "has transparent pixels"),
    ],
)
def test_what_is_refused(tmp_path: Path, values: np.ndarray, sentence: str) -> None:
    one, file = photo(tmp_path / "p.png"), save(tmp_path / "m.png", values)
    with pytest.raises(UserError, match=sentence):
        read_mask(file, one)
    (tmp_path / "m.png").write_text("no image")
    with pytest.raises(UserError, match="not a picture"):
        read_mask(file, one)


def test_photos_whose_masks_are_empty_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    note_empty([], 2)
    assert capsys.readouterr().err == ""
    note_empty(["a.png"], 3)
    note_empty(["a.png", "b.png", "c.png", "d.png"], 9)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "1 photo of 3 is left out, for its mask is 0 (black) everywhere: a.png"
    assert second.startswith("4 photos of 9 are left out, for their masks are") and second.endswith("c.png, ...")
    with pytest.raises(UserError, match=r"of 1 of 2 photos are 0 \(black\) everywhere \(a.png\), and two photos"):
        note_empty(["a.png"], 2)
