"""The perspective views of a panorama: they cover the sphere, and pixels go there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photos import read_photo
from dune_cli.io.png import save_png
from dune_cli.sfm import panoramas
from dune_cli.sfm.masks import MaskFiles
from support import rendered_rooms as room

SPHERE = Camera.sphere(400, 200)


def test_views_cover_the_sphere_and_pixels_go_there_and_back() -> None:
    pixels = np.random.default_rng(0).uniform((-0.5, -0.5), (399.5, 199.5), (2000, 2))
    seen = np.zeros(len(pixels), int)
    for direction in panoramas.DIRECTIONS:
        view = panoramas.perspective_view(SPHERE, direction)
        found = view.pixels_of(pixels)
        shown = np.isfinite(found).all(-1)
        seen += shown
        back = view.pixels_in_photo(found[shown])
        np.testing.assert_allclose(SPHERE.unproject(back), SPHERE.unproject(pixels[shown]), atol=1e-9)
    assert seen.min() == 1 and seen.max() == 3 and np.mean(seen > 1) > 0.1


@pytest.mark.parametrize("direction", ["front", "back", "up", "down"])
def test_a_view_is_what_a_camera_turned_that_way_sees(direction: str) -> None:
    view = panoramas.perspective_view(SPHERE, direction)
    turned = room.place(2)
    turned[:3, :3] = turned[:3, :3] @ view.rotation.T
    camera = Camera.pinhole(view.K, view.width, view.height)
    true = room.render(camera, turned, 2).astype(float)[4:-4, 4:-4]
    cut = view.image(room.render(SPHERE, room.place(2), 2)).astype(float)[4:-4, 4:-4]
    off = np.abs(cut - true)
    moved = np.abs(np.roll(cut, 1, axis=1) - true)  # by one pixel
    assert off.mean() < 12 and off.mean() < 0.6 * moved.mean()


def test_a_panorama_s_mask_is_that_of_its_views(tmp_path: Path) -> None:
    sphere = tmp_path / "pano.png"
    save_png(sphere, room.render(SPHERE, room.place(2), 2))
    used = np.full((200, 400), 255, np.uint8)
    used[150:] = 0  # the tripod
    (tmp_path / "masks").mkdir()
    save_png(tmp_path / "masks" / "pano.png.png", used)
    photos = panoramas.cut([sphere], {0: SPHERE}, WorkFolder(tmp_path / "work"))
    masks = panoramas.ViewMasks.of(MaskFiles(tmp_path / "masks", [sphere]), photos)
    left_out = {part.direction: masks.ignored(part.path)["--masks"].mean() for part in photos.parts}
    assert left_out["up"] == 0 and left_out["down"] > 0.5 and 0 < left_out["front"] < 0.2


def test_cut_views_are_kept_and_damaged_ones_cut_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, sphere = tmp_path / "photo.png", tmp_path / "pano.png"
    save_png(photo, np.zeros((32, 48, 3), np.uint8))
    save_png(sphere, room.render(SPHERE, room.place(2), 2))
    found = panoramas.cut([photo, sphere], {1: SPHERE}, WorkFolder(tmp_path / "work"))
    assert found.names == ["photo.png", *(f"{direction}/pano.png" for direction in panoramas.DIRECTIONS)]
    assert found.of(1) == list(range(1, 7)) and found.rigs.frames == {0: list(range(1, 7))}
    before = read_photo(found.paths[3]).rgb
    found.paths[3].write_bytes(found.paths[4].read_bytes())
    again = panoramas.cut([photo, sphere], {1: SPHERE}, WorkFolder(tmp_path / "work"))
    assert again.paths == found.paths and np.array_equal(read_photo(again.paths[3]).rgb, before)
    assert "back/pano.jpg was changed" in capsys.readouterr().err
    with pytest.raises(UserError, match="too small"):
        panoramas.perspective_view(Camera.sphere(32, 16), "front")
