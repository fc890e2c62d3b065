"""Features of photos: batches, sizes, teachers, PCA pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli.checkpoints.adapters import dune
from dune_cli.errors import UserError
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import prepare
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.tasks.encode import EncoderFeatures, InputFit, document, encode, pca_picture, write
from support.published_files import dune_manifest, make_state_dict


@pytest.fixture(scope="module")
def encoder() -> DistilledEncoder:
    state = make_state_dict(dune_manifest(128, 2, 6, {"one": 48}), 4)
    return dune.build({"model": state}).eval().requires_grad_(False)


def photo(name: str, height: int, width: int) -> Photo:
    rgb = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photo(Path(name), rgb, "hash of " + name)


def test_features_are_the_encoders_tokens(encoder: DistilledEncoder) -> None:
    shot = photo("a.jpg", 70, 98)
    (encoded,) = encode(encoder, [shot], fit=98)
    tokens = encoder(torch.from_numpy(shot.rgb.astype(np.float32) / 255).permute(2, 0, 1)[None])
    assert encoded.patches.shape == (5, 7, 128)
    assert encoded.registers.shape == (4, 128)
    np.testing.assert_allclose(encoded.patches, tokens.map()[0], atol=1e-5)
    np.testing.assert_allclose(encoded.cls, tokens.cls[0], atol=1e-5)
    np.testing.assert_array_equal(encoded.network_from_image, np.eye(3))


def test_batches_give_the_same_in_the_same_order(encoder: DistilledEncoder) -> None:
    shots = [photo(name, *size) for name, size in zip("abcde", [(70, 98), (70, 98), (98, 70), (70, 98), (70, 98)])]
    single = list(encode(encoder, shots, 98))
    for batch_size in (2, 3, 10):
        batched = list(encode(encoder, iter(shots), 98, batch_size=batch_size))
        assert [f.path.name for f in batched] == list("abcde")
        for one, other in zip(single, batched):
            np.testing.assert_allclose(one.patches, other.patches, atol=1e-5)


def test_the_default_size_is_the_native_one(encoder: DistilledEncoder) -> None:
    (encoded,) = encode(encoder, [photo("a", 300, 400)])
    assert encoded.patches.shape[:2] == (4, 6)  # 84 x 63 px, cropped to patches
    expected = prepare(photo("a", 300, 400).rgb, 84, 14)
    np.testing.assert_array_equal(encoded.network_from_image, expected.network_from_image)


def test_a_teachers_tokens(encoder: DistilledEncoder) -> None:
    (encoded,) = encode(encoder, [photo("a", 42, 56)], 56, teacher="one")
    assert encoded.patches.shape == (3, 4, 48)
    assert encoded.registers.shape == (0, 48)
    assert document(encoded, Path("x.npz"), {})["teacher"] == "one"
    with pytest.raises(UserError, match="no teacher 'two'; allowed: one"):
        next(encode(encoder, [photo("a", 42, 56)], 56, teacher="two"))


def test_pca_shows_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((16, 3)))[0]
    maps = rng.standard_normal((6, 9, 3)) * [9, 3, 1]
    picture = pca_picture(maps @ axes.T + 5, 4)
    assert picture.shape == (24, 36, 3)
    assert picture.dtype == np.uint8
    for channel in range(3):
        shown, meant = picture[::4, ::4, channel].ravel() / 255, maps[..., channel].ravel()
        assert abs(np.corrcoef(shown, meant)[0, 1]) > 0.97
    assert (picture[:4, :4] == picture[0, 0]).all()


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 2), (4, 4, 1)])
def test_pca_of_very_little(shape: tuple[int, int, int]) -> None:
    assert pca_picture(np.ones(shape, np.float32), 2).shape == (2 * shape[0], 2 * shape[1], 3)


def test_the_picture_has_the_photos_size_and_its_places(tmp_path: Path) -> None:
    """A photo of 100 x 60 px seen as 64 x 32 without its border: each pixel has the colour of the patch that saw it."""
    patches = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    A = np.array([[0.8, 0, -8.0], [0, 0.8, -8.0], [0, 0, 1.0]])
    features = EncoderFeatures(
        path=tmp_path / "p.png", sha256="", width=100, height=60, cls=np.zeros(8), registers=np.zeros((0, 8)),
        patches=patches, patch=16, network_from_image=A, teacher=None,
    )  # fmt: skip
    write(features, tmp_path / "pca.png")
    picture = np.asarray(Image.open(tmp_path / "pca.png"))
    cells = pca_picture(patches, 1)
    assert picture.shape == (60, 100, 3)
    for x, y in ((12, 12), (45, 30), (80, 20), (0, 0), (99, 59)):
        column, row = (int(np.clip(np.floor((0.8 * v - 8 + 0.5) / 16), 0, top)) for v, top in ((x, 3), (y, 1)))
        assert (picture[y, x] == cells[row, column]).all(), (x, y)


def test_stretch_keeps_the_whole_photo(encoder: DistilledEncoder) -> None:
    wide = photo("wide", 497, 741)
    (found,) = encode(encoder, [wide], InputFit(112, "stretch"))
    h, w = found.patches.shape[:2]
    assert (w, h) == (8, 5)  # 112 x 75 px at 14 px a patch
    corners = np.array([[-0.5, -0.5, 1], [740.5, 496.5, 1]]) @ found.network_from_image.T
    np.testing.assert_allclose(corners[:, :2], [[-0.5, -0.5], [111.5, 69.5]], atol=1e-9)
    (cropped,) = encode(encoder, [photo("wide", 500, 741)], 112)
    assert cropped.patches.shape[:2] == (5, 8) and cropped.network_from_image[1, 1] != found.network_from_image[1, 1]
    with pytest.raises(UserError, match="allowed: crop, stretch"):
        InputFit(112, "squeeze")
