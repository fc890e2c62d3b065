from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.preprocess import prepare


def _published(
    width: int, height: int, size: int, patch: int, four_thirds: bool
) -> tuple[int, int, int, int, int, int]:
    """docs/models/mast3r.md, "Inputs", word by word: size after the resize, then the crop's box, found by walking over
    patches."""
    new_width, new_height = round(width * size / max(width, height)), round(height * size / max(width, height))
    cx, cy = new_width // 2, new_height // 2
    half_width, half_height = (2 * cx // patch) * patch / 2, (2 * cy // patch) * patch / 2
    if four_thirds and new_width == new_height:
        half_height = 3 * half_width / 4
    return (
        new_width,
        new_height,
        *(int(v) for v in (cx - half_width, cy - half_height, cx + half_width, cy + half_height)),
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(40, 400),
    st.integers(40, 400),
    st.sampled_from([(224, 14), (512, 16), (518, 14), (97, 14), (64, 16)]),
)
def test_size_crop_and_pixels_as_published(width: int, height: int, size_and_patch: tuple[int, int]) -> None:
    size, patch = size_and_patch
    rgb = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    new_width, new_height, left, top, right, bottom = _published(width, height, size, patch, False)
    if min(right - left, bottom - top) == 0:
        with pytest.raises(UserError, match="less than one patch"):
            prepare(rgb, size, patch)
        return
    prepared = prepare(rgb, size, patch)
    method = Image.Resampling.LANCZOS if max(width, height) > size else Image.Resampling.BICUBIC
    resized = Image.fromarray(rgb).resize((new_width, new_height), method).crop((left, top, right, bottom))
    assert np.array_equal(prepared.image, np.asarray(resized, np.float32).transpose(2, 0, 1) / 255)
    assert prepared.image.dtype == np.float32 and prepared.image.flags.c_contiguous
    assert prepared.width % patch == prepared.height % patch == 0
    assert max(prepared.width, prepared.height) <= size


@pytest.mark.parametrize(
    ("shape", "patch", "size"), [((384, 512), 16, 512), ((518, 294), 14, 518), ((224, 224), 14, 224)]
)
def test_a_fitting_image_passes_untouched(shape: tuple[int, int], patch: int, size: int) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    prepared = prepare(rgb, size, patch)
    assert np.array_equal(np.round(prepared.image * 255).astype(np.uint8), rgb.transpose(2, 0, 1))
    assert np.array_equal(prepared.network_from_image, np.eye(3))


@pytest.mark.parametrize("side", [300, 512, 801])
def test_squares_become_4_3_only_when_asked(side: int) -> None:
    rgb = np.zeros((side, side, 3), np.uint8)
    assert prepare(rgb, 512, 16).image.shape == (3, 512, 512)
    assert prepare(rgb, 512, 16, square_to_4_3=True).image.shape == (3, 384, 512)
    assert prepare(rgb, 224, 16, square_to_4_3=True).image.shape == (3, 160, 224)  # 168 is no whole number of patches
    assert prepare(rgb[: side - 9], 512, 16, square_to_4_3=True).height >= 480
    expected = _published(side, side, 512, 16, True)
    transform = prepare(rgb, 512, 16, square_to_4_3=True).network_from_image
    assert transform[1, 2] == pytest.approx(0.5 * 512 / side - 0.5 - expected[3])


def test_own_size_is_cropped_to_patches_about_the_middle() -> None:
    rgb = np.arange(101 * 75 * 3, dtype=np.uint32).astype(np.uint8).reshape(75, 101, 3)
    prepared = prepare(rgb, None, 14)
    assert prepared.image.shape == (3, 70, 98)
    assert np.array_equal(np.round(prepared.image * 255).astype(np.uint8).transpose(1, 2, 0), rgb[2:72, 1:99])
    assert np.array_equal(prepared.network_from_image, [[1, 0, -1], [0, 1, -2], [0, 0, 1]])


@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 517), (120, 90)])
def test_the_transform_follows_the_pixels(width: int, height: int) -> None:
    """A blob drawn about a 3-D point's projection by K lies, in the network's image, at its projection by K_network."""
    K = np.array([[0.9 * width, 0, width / 2 - 3], [0, 0.8 * width, height / 2 + 2], [0, 0, 1]])
    point = np.array([0.1, -0.07, 1.0])
    x, y, _ = K @ point
    rows, columns = np.mgrid[:height, :width]
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 6.0**2))
    prepared = prepare(np.repeat(np.round(255 * blob)[..., None], 3, axis=2).astype(np.uint8), 224, 14)
    K_network = prepared.network_from_image @ K
    weights = prepared.image[0].astype(np.float64)
    rows, columns = np.mgrid[: prepared.height, : prepared.width]
    centre = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()
    assert centre == pytest.approx((K_network @ point)[:2], abs=0.05)
    assert K_network[2].tolist() == [0, 0, 1] and K_network[1, 0] == K_network[0, 1] == 0


def test_what_cannot_be_prepared() -> None:
    with pytest.raises(UserError, match="900 x 20 px becomes 224 x 5 px"):
        prepare(np.zeros((20, 900, 3), np.uint8), 224, 14)
    with pytest.raises(UserError, match="larger --size"):
        prepare(np.zeros((50, 50, 3), np.uint8), 10, 14)
    with pytest.raises(ValueError, match="uint8"):
        prepare(np.zeros((50, 50, 3), np.float32), 224, 14)
