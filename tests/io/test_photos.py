from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import PackageMissing, UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io import photos
from dune_cli.io.contact_sheet import reduced
from dune_cli.io.intrinsics import find_panoramas, resolve_cameras
from dune_cli.io.photos import read_header, read_photo, read_small
from support.odd_photos import BAD, GOOD, huge_png

# A 48 x 64 HEIC file that this project made with pillow-heif: red above, blue below.
HEIC = Path(__file__).with_name("two_halves.heic.b64")


@pytest.fixture(scope="module")
def rgb(example_photos: Path) -> np.ndarray:
    return np.asarray(Image.open(example_photos / "coffee.png").convert("RGB").resize((96, 64)))


@pytest.mark.parametrize("form", GOOD)
def test_every_form_gives_the_same_picture(form: str, rgb: np.ndarray, tmp_path: Path) -> None:
    path = GOOD[form](tmp_path / "photo", rgb)
    photo = read_photo(path)
    assert photo.rgb.shape == rgb.shape and photo.rgb.dtype == np.uint8 and photo.rgb.flags.c_contiguous
    assert photo.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (photo.width, photo.height) == (96, 64)
    expected = rgb.astype(int)
    if "grey" in form or "float" in form:
        expected = np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[..., None], 3, axis=2).astype(int)
    if "alpha" in form:
        assert (photo.rgb[:4] == 255).all()  # what shows through is white
        expected, photo = expected[4:-4, 4:-4], photos.Photo(path, photo.rgb[4:-4, 4:-4], "")
    error = np.abs(photo.rgb - expected)
    lossy = {"CMYK JPEG": 12, "grey JPEG": 3, "palette PNG": 20, "animated GIF": 20}
    assert error.mean() <= lossy.get(form, 0.5) and (form in lossy or error.max() <= 1)


def test_animations_say_so_and_give_their_first_picture(
    rgb: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = GOOD["animated PNG"](tmp_path / "photo", rgb)
    assert np.array_equal(read_photo(path).rgb, rgb)
    assert "holds 2 pictures; the first is used" in capsys.readouterr().err
    read_photo(GOOD["BMP"](tmp_path / "photo", rgb))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_photo_is_one_sentence_with_its_path(fault: str, rgb: np.ndarray, tmp_path: Path) -> None:
    write, word = BAD[fault]
    path = write(tmp_path / "cut", rgb)
    with pytest.raises(UserError) as caught:
        read_photo(path)
    assert word in str(caught.value) and str(path) in str(caught.value)


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_photo(tmp_path)


def test_the_size_limits_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (16, 17)).save(path)
    assert read_photo(path).rgb.shape == (17, 16, 3)
    Image.new("RGB", (15, 400)).save(path)
    with pytest.raises(UserError, match="at least 16 px"):
        read_photo(path)
    path.write_bytes(huge_png(20_000, 10_001))
    with pytest.raises(UserError, match=r"20000 x 10001 px \(200 megapixels\)"):
        read_photo(path)
    path.write_bytes(huge_png(20_000, 9_500))  # 190 megapixels: allowed, although Pillow's own limit is 179
    with pytest.raises(UserError, match="damaged or cut off"):
        read_photo(path)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None  # other users of Pillow keep their limit


# TIFF 6.0, tag 274: which side of the scene the stored first row and first column are
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_undone(orientation: int, ending: str, tmp_path: Path) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    first_row, first_column = SIDES[orientation]
    stored = upright[::-1] if "bottom" in (first_row, first_column) else upright
    stored = stored[:, ::-1] if "right" in (first_row, first_column) else stored
    stored = stored.swapaxes(0, 1) if first_row in ("left", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{ending}"
    options = {"lossless": True} if ending == ".webp" else {"quality": 100} if ending == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    photo = read_photo(path)
    assert photo.rgb.shape == upright.shape
    for row, column in ((4, 4), (4, 40), (28, 4), (28, 40)):
        assert np.abs(photo.rgb[row, column].astype(int) - upright[row, column]).max() < 40


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_are_scaled_and_told(dtype: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.linspace(0, 70_000, 32 * 32).astype(dtype).reshape(32, 32)).save(path)
    assert len(np.unique(read_photo(path).rgb)) > 200
    assert f"{path}: values from 0 to 7" in capsys.readouterr().err


def test_heic_without_its_package_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "iphone.heic"
    path.write_bytes(base64.b64decode(HEIC.read_text()))
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(PackageMissing, match="pip install pi-heif"):
        read_photo(path)


def test_heic(tmp_path: Path) -> None:
    path = tmp_path / "iphone.heic"
    path.write_bytes(base64.b64decode(HEIC.read_text()))
    photo = read_photo(path)
    assert photo.rgb.shape == (64, 48, 3)
    assert photo.rgb[8, 8, 0] > 150 > photo.rgb[8, 8, 2] and photo.rgb[-8, -8, 2] > 150 > photo.rgb[-8, -8, 0]


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" '
    'GPano:ProjectionType="equirectangular"/></rdf:RDF></x:xmpmeta>'
)


def test_a_panorama_of_the_sphere_is_noticed_and_refused_as_a_photo(tmp_path: Path) -> None:
    sphere, cropped, plain = (tmp_path / f"{name}.jpg" for name in ("sphere", "cropped", "plain"))
    Image.new("RGB", (128, 64)).save(sphere, xmp=XMP.encode())
    Image.new("RGB", (96, 64)).save(cropped, xmp=XMP.encode())
    Image.new("RGB", (128, 64)).save(plain)
    found = {path.stem: read_photo(path) for path in (sphere, cropped, plain)}
    assert {name: photo.info.panorama for name, photo in found.items()} == {
        "sphere": True, "cropped": False, "plain": False,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"sphere\.jpg is a panorama of the whole sphere .* cut it into pictures first"):
        resolve_cameras([found["sphere"].info], None, None)
    assert resolve_cameras([found["sphere"].info], None, None, panoramas=True)[0].camera == Camera.sphere(128, 64)
    header = read_header(sphere)
    assert header is not None and header.panorama
    assert resolve_cameras([found["sphere"].info], None, 90.0)[0].source == "given"
    assert resolve_cameras([found["plain"].info], None, None)[0].source == "default"


def test_who_says_that_a_photo_is_a_panorama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, photo = tmp_path / "wide.jpg", tmp_path / "photo.jpg"
    Image.new("RGB", (128, 64)).save(wide)
    Image.new("RGB", (96, 64)).save(photo)
    infos = [read_photo(path).info for path in (wide, photo)]
    assert [own.camera.model for own in resolve_cameras(infos, None, None, panoramas=True)] == ["PINHOLE"] * 2
    assert "wide.jpg is twice as wide as high and says nothing of the camera" in capsys.readouterr().err
    told = resolve_cameras(infos, "equirectangular", None, panoramas=True)
    assert [own.camera.model for own in told] == ["EQUIRECTANGULAR", "PINHOLE"]
    assert find_panoramas([photo, wide], "EQUIRECTANGULAR", None) == {1: Camera.sphere(128, 64)}
    cameras = tmp_path / "cameras.json"
    cameras.write_text('{"wide.jpg": {"model": "EQUIRECTANGULAR"}, "photo.jpg": [[60, 0, 48], [0, 60, 32], [0, 0, 1]]}')
    assert resolve_cameras(infos, str(cameras), None, panoramas=True)[0].camera == Camera.sphere(128, 64)
    with pytest.raises(UserError, match=r"photo\.jpg has 96 x 64 px"):
        resolve_cameras(infos[1:], "EQUIRECTANGULAR", None, panoramas=True)
    with pytest.raises(UserError, match="a sphere is twice as wide as high"):
        resolve_cameras(infos[1:], "EQUIRECTANGULAR,128,64,128,64", None, panoramas=True)


def test_avif(tmp_path: Path) -> None:
    """By Pillow itself, in a plain install."""
    halves = np.zeros((64, 48, 3), np.uint8)
    halves[:32, :, 0], halves[32:, :, 2] = 255, 255
    path = tmp_path / "photo.avif"
    Image.fromarray(halves).save(path, quality=90)
    rgb = read_photo(path).rgb
    assert rgb.shape == halves.shape and np.abs(rgb.astype(int) - halves)[[4, -4]].max() < 12


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_to_look_at_is_the_photo_reduced(orientation: int, example_photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    with Image.open(example_photos / "chelsea.png") as picture:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.convert("RGB").resize((1800, 1200), Image.Resampling.BICUBIC).save(file, quality=92, exif=exif)
    small, whole = read_small(file, 192), read_photo(file).rgb
    assert max(small.shape) == 450 and (small.shape[0] > small.shape[1]) == (whole.shape[0] > whole.shape[1])
    off = np.abs(reduced(small).astype(float) - reduced(whole))
    assert reduced(small).shape == reduced(whole).shape and off.mean() < 1 and off.max() < 32
    np.testing.assert_array_equal(read_small(file, 1200), whole)
    np.testing.assert_array_equal(
        read_small(example_photos / "chelsea.png", 64), read_photo(example_photos / "chelsea.png").rgb
    )
