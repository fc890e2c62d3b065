from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.io.intrinsics import find_panoramas, one_by_one, resolve_intrinsics
from dune_cli.io.photos import Photo, PhotoInfo

K1 = [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
K2 = [[600, 0, 310], [0, 610, 250], [0, 0, 1]]


def _photos(*paths: str, focal: float | None = None) -> list[Photo]:
    return [Photo(Path(path), np.zeros((480, 640, 3), np.uint8), "", focal) for path in paths]


def _resolve(
    photos: list[Photo], intrinsics: str | None = None, fov_deg: float | None = None
) -> list[tuple[list, str]]:
    return [(K.tolist(), source) for K, source in resolve_intrinsics(photos, intrinsics, fov_deg)]


def test_numbers_for_all_or_one_an_image() -> None:
    photos = _photos("a.jpg", "b.jpg")
    assert _resolve(photos, "500, 510,320,240") == [(K1, "given")] * 2
    assert _resolve(photos, "500,510,320,240;6e2,610,310,250;") == [(K1, "given"), (K2, "given")]


def test_a_file_names_its_images_by_path_name_or_stem(tmp_path: Path) -> None:
    table = {"left/a.jpg": K1, "a.jpg": K2, "b": K1, "c.png": K2, "unused.jpg": K1}
    path = tmp_path / "K.json"
    path.write_text(json.dumps(table))
    photos = _photos("left/a.jpg", "right/a.jpg", "/x/b.jpg", "c.jpg")
    assert _resolve(photos, str(path)) == [(K, "given") for K in (K1, K2, K1, K2)]


def test_a_file_for_other_images_is_refused_and_one_for_some_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "K.json"
    path.write_text(json.dumps({"a.jpg": K1}))
    with pytest.raises(UserError, match=r"no camera for b\.jpg, aa\.jpg; it has: a\.jpg"):
        _resolve(_photos("b.jpg", "aa.jpg"), str(path))
    photos = [*_photos("a.jpg"), *_photos("b.jpg", focal=700.0), *_photos("aa.jpg")]
    found = _resolve(photos, str(path))
    assert [source for _, source in found] == ["given", "exif", "default"] and found[0][0] == K1
    assert "2 of 3 photos (b.jpg, aa.jpg)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "\xff\xfe", '{"a.jpg": 5}', '{"a.jpg": [[1, 2], [3, 4]]}', '{"a.jpg": "K"}']
)
def test_files_that_hold_no_intrinsics(content: str, tmp_path: Path) -> None:
    path = tmp_path / "K.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"K\.json"):
        _resolve(_photos("a.jpg"), str(path))


def test_the_files_of_the_example_photos(example_photos: Path) -> None:
    photos = _photos(*(str(example_photos / f"motorcycle_{side}.png") for side in ("left", "right")))
    left, right = _resolve(photos, str(example_photos / "motorcycle_intrinsics.json"))
    assert left[0][0] == [994.978, 0, 311.193] and right[0][0] == [994.978, 0, 342.279]


@pytest.mark.parametrize(
    ("intrinsics", "word"),
    [
        ("500,500,320", "neither four numbers nor a file"),
        ("absent.json", "neither four numbers nor a file"),
        ("", "neither four numbers nor a file"),
        ("a,b,c,d", "neither four numbers nor a file"),
        ("500,500,320,240;500,500,320,240", "2 cameras for 1 images"),
        ("nan,500,320,240", "not finite"),
        ("inf,500,320,240", "not finite"),
        ("0,500,320,240", "must be positive"),
        ("500,-500,320,240", "must be positive"),
        ("0.8,0.8,0.5,0.5", "not a share"),
    ],
)
def test_numbers_that_are_no_camera(intrinsics: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        _resolve(_photos("a.jpg"), intrinsics)


@pytest.mark.parametrize(
    ("entry", "value", "word"),
    [((2, 2), 2.0, "last row"), ((2, 0), 1.0, "last row"), ((0, 1), 3.0, "skew"), ((1, 0), 3.0, "skew")],
)
def test_matrices_that_are_no_pinhole(entry: tuple[int, int], value: float, word: str, tmp_path: Path) -> None:
    K = np.array(K1, float)
    K[entry] = value
    path = tmp_path / "K.json"
    path.write_text(json.dumps({"a.jpg": K.tolist()}))
    with pytest.raises(UserError, match=word):
        _resolve(_photos("a.jpg"), str(path))


def test_a_principal_point_off_the_photo_is_only_noted(capsys: pytest.CaptureFixture[str]) -> None:
    _resolve(_photos("a.jpg"), "500,500,320,240")
    assert capsys.readouterr().err == ""
    _resolve(_photos("a.jpg"), "500,500,700,240")
    assert "outside a.jpg" in capsys.readouterr().err
    with pytest.raises(UserError, match="farther than its long side; give fx, fy, cx, cy in pixels of this photo"):
        _resolve(_photos("a.jpg"), "500,500,5000,240")


@pytest.mark.parametrize("given", [{"fov_deg": 170.0}, {"intrinsics": "30,30,319.5,239.5"}], ids=str)
def test_the_field_of_view_of_a_fisheye_is_told(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(False)  # a new command
    _resolve(_photos("a.jpg", "b.jpg"), **given)
    said = capsys.readouterr().err
    assert said.count("is that of a fisheye lens") == 1 and "OPENCV_FISHEYE" in said
    _resolve(_photos("a.jpg"), fov_deg=130.0)
    assert "fisheye" not in capsys.readouterr().err


def test_what_the_user_says_goes_before_exif_and_that_before_the_default() -> None:
    plain, tagged = _photos("a.jpg")[0], _photos("b.jpg", focal=700.0)[0]
    (default, source), (exif, exif_source) = _resolve([plain, tagged])
    assert (source, exif_source) == ("default", "exif")
    assert exif == [[700, 0, 319.5], [0, 700, 239.5], [0, 0, 1]]
    assert np.degrees(2 * np.arctan(320 / default[0][0])) == pytest.approx(55) and default[0][2] == 319.5
    (K, source), (again, _) = _resolve([plain, tagged], fov_deg=90.0)
    assert source == "given" and again == K and K[0][0] == pytest.approx(320)
    with pytest.raises(UserError, match="give one of them"):
        _resolve([plain], "500,500,320,240", 60.0)
    with pytest.raises(UserError, match="impossible"):
        _resolve([plain], None, 180.0)


def test_the_field_of_view_spans_the_long_side_of_a_portrait() -> None:
    portrait = Photo(Path("p.jpg"), np.zeros((640, 480, 3), np.uint8), "")
    K, _ = resolve_intrinsics([portrait], None, 90.0)[0]
    assert K.tolist() == pytest.approx(np.array([[320, 0, 239.5], [0, 320, 319.5], [0, 0, 1]]))


def test_intrinsics_of_the_stored_pixels_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    turned = [PhotoInfo(Path(f"{name}.jpg"), 480, 640, "", None, 6) for name in "ab"]
    for photos, text, noticed in (
        (turned, "500,500,320,240", True),
        (turned, "500,500,240,320", False),
        ([PhotoInfo(Path("u.jpg"), 480, 640, "")], "500,500,320,240", False),  # not turned: whoever cropped it knows
    ):
        resolve_intrinsics(photos, text, None)
        told = capsys.readouterr().err
        assert ("a.jpg and 1 more look like those of the stored pixels" in told) == noticed


def test_what_holds_no_cameras_is_refused_before_the_photos_are_read(tmp_path: Path) -> None:
    assert one_by_one("500,510,320,240;6e2,610,310,250", 2) == ["500,510,320,240", "6e2,610,310,250"]
    path = tmp_path / "cameras.txt"
    path.write_text("1 PINHOLE 640 480 -500 510 320 240")
    for text, word in ((str(path), "focal length of -500"), ("LYTRO,1,2,3", "LYTRO is unknown"), ("1,2", "neither")):
        with pytest.raises(UserError, match=word):
            one_by_one(text, 3)


def test_panoramas_that_none_can_be_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(UserError, match="twice as wide as high"):
        find_panoramas([path], "EQUIRECTANGULAR", None)
