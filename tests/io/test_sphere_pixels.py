"""Panoramas without tags are told by their pixels; photos of that shape are not taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import find_panoramas, resolve_cameras
from dune_cli.io.photos import read_photo
from dune_cli.io.sphere_pixels import closes_around


def panorama(width: int = 640, blue_sky: bool = False) -> np.ndarray:
    """(H, W, 3) waves in all directions, as a sphere sees them."""
    sphere = Camera.sphere(width, width // 2)
    x, y = np.meshgrid(np.arange(width), np.arange(width // 2))
    rays = sphere.unproject(np.stack([x, y], axis=-1))
    rng = np.random.default_rng(0)
    waves = sum(np.cos(rays @ rng.normal(0, 20, 3) + rng.uniform(0, 6)) for _ in range(12))
    rgb = np.repeat(128 + 15 * waves[..., None], 3, axis=2) + rng.normal(0, 2, (*waves.shape, 3))
    if blue_sky:
        rgb[: width // 8] = (90, 140, 220)
    return np.clip(rgb, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("blue_sky", [False, True])
def test_a_panorama_closes_around(blue_sky: bool) -> None:
    assert closes_around(panorama(blue_sky=blue_sky))


def test_no_photo_of_the_shape_does(example_photos: Path) -> None:
    whole = panorama()
    assert not closes_around(whole[:, :480])  # a part of one, as wide
    assert not closes_around(np.full((320, 640, 3), 200, np.uint8))  # tells nothing
    for name in ("astronaut.png", "rocket.jpg", "coffee.png"):
        rgb = read_photo(example_photos / name).rgb
        side = min(rgb.shape[0], rgb.shape[1] // 2)
        assert not closes_around(rgb[:side, : 2 * side]) and not closes_around(rgb[-side:, : 2 * side])


def test_a_panorama_without_tags_has_a_sphere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "around.jpg"
    Image.fromarray(panorama()).save(path, quality=95)
    info = read_photo(path).info
    assert resolve_cameras([info], None, None, panoramas=True)[0].camera == Camera.sphere(640, 320)
    assert "around.jpg: taken for a panorama of the whole sphere" in capsys.readouterr().err
    assert find_panoramas([path], None, None) == {0: Camera.sphere(640, 320)}
    assert resolve_cameras([info], None, 60.0, panoramas=True)[0].camera.model == "PINHOLE"
    capsys.readouterr()
    assert resolve_cameras([info], None, None)[0].camera.model == "PINHOLE"  # for what takes no panorama
    assert "around.jpg looks like a panorama of the whole sphere" in capsys.readouterr().err
