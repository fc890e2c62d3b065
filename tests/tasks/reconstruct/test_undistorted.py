"""The folder of undistorted photos, as other programs load it: pixels, cameras, points and masks fit each other."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageOps

from dune_cli.geometry import poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid
from dune_cli.io.undistortion import WIDEST_DEG
from dune_cli.provenance import Source
from dune_cli.sfm.cameras import to_colmap
from dune_cli.sfm.scene import Scene, SparsePoints, View
from dune_cli.tasks.reconstruct.undistorted import straight_photo, write_undistorted
from support.half_masks import left_half
from support.odd_photos import save_turned

SIZE = (128, 96)
LENSES = {
    "barrel": Camera("OPENCV", (110.0, 112.0, 60.0, 44.0, -0.28, 0.07, 0.001, -0.001), *SIZE),
    "pincushion": Camera("SIMPLE_RADIAL", (110.0, 63.0, 47.0, 0.15), *SIZE),
    "fisheye": Camera("OPENCV_FISHEYE", (45.0, 45.0, 64.0, 47.0, -0.02, 0.005, -0.001, 0.0002), *SIZE),
    "half sphere": Camera("SIMPLE_FISHEYE", (22.0, 63.5, 47.5), *SIZE),
    "division": Camera("SIMPLE_DIVISION", (90.0, 63.5, 47.5, -0.2), *SIZE),
}
lenses = pytest.mark.parametrize("camera", LENSES.values(), ids=list(LENSES))
PINHOLE = Camera("PINHOLE", (110.0, 110.0, 63.5, 47.5), *SIZE)


def picture_of_rays(camera: Camera) -> np.ndarray:
    """(H, W, 3): red and green are x / z and y / z of the pixel's ray from -2 to 2, blue is 255 where there is one."""
    rays = camera.unproject(pixel_grid(camera.height, camera.width))
    with np.errstate(all="ignore"):
        plane = np.clip(rays[..., :2] / rays[..., 2:], -2, 2)
        seen = rays[..., 2:] > 0
    picture = np.concatenate([(plane + 2) / 4 * 255, np.full_like(plane[..., :1], 255.0)], axis=-1)
    return np.rint(np.where(seen, picture, 0)).astype(np.uint8)


def scene_of(cameras: list[Camera], names: list[str], orientations: list[int]) -> Scene:
    """Points before cameras side by side, each seen by all of them that can."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-1.5, -1, 2), (1.5, 1, 4), (80, 3))
    views, observations = [], []
    for number, (camera, name, orientation) in enumerate(zip(cameras, names, orientations)):
        pose = poses.from_rotation_translation(np.eye(3), np.array([0.2 * number, 0, 0]))
        K, lens = camera.K, None if camera.model == "PINHOLE" else camera
        views.append(View(name, *SIZE, K, "given", pose, lens=lens, orientation=orientation))
        pixels = camera.project(points - pose[:3, 3])
        with np.errstate(invalid="ignore"):
            seen = (pixels >= -0.5).all(-1) & (pixels <= np.array(SIZE) - 0.5).all(-1)
        observations.append((np.flatnonzero(seen), pixels[seen]))
    sparse = SparsePoints(points, np.full((80, 3), 90, np.uint8), np.ones(80), tuple(observations))
    return Scene("matches", tuple(views), (), sparse, "arbitrary", "why", 0.1, 3.0, (Source("sift"),))


@lenses
def test_the_image_is_that_of_its_camera_without_blank_pixels_and_as_colmap_makes_it(camera: Camera) -> None:
    straight = straight_photo(camera)
    photo = picture_of_rays(camera)
    image = straight.image(photo).astype(float)
    assert image.shape == (straight.height, straight.width, 3) and image[..., 2].min() == 255
    pinhole = Camera.pinhole(straight.K, straight.width, straight.height)
    assert np.abs(image - picture_of_rays(pinhole)).max() < 2  # of 64 levels a unit of x / z
    half = np.degrees(np.arctan(np.array([straight.width, straight.height]) / 2 / np.diag(straight.K)[:2]))
    assert (half <= WIDEST_DEG + 1).all()
    if (half < WIDEST_DEG - 2).all():  # where none of COLMAP's image is cut off
        options = pycolmap.UndistortCameraOptions()
        other, colmap = pycolmap.undistort_image(options, pycolmap.Bitmap.from_array(photo), to_colmap(camera))
        assert (colmap.width, colmap.height) == (straight.width, straight.height)
        assert np.abs(other.to_array().astype(float) - image)[1:-1, 1:-1].max() <= 2


@lenses
def test_pixels_and_masks_go_the_same_way_as_the_image(camera: Camera) -> None:
    straight = straight_photo(camera)
    grid = pixel_grid(straight.height, straight.width)
    np.testing.assert_allclose(straight.pixels_of(straight.pixels_in_photo(grid)), grid, atol=1e-6)
    assert np.isnan(straight.pixels_of(np.array([[-300.0, 40.0]]))).all()
    used = np.zeros((SIZE[1], SIZE[0]), bool)
    used[:, 70:] = True
    nearest = np.rint(straight.pixels_in_photo(grid)[..., 0]) >= 70
    assert (straight.mask(used) == nearest).mean() > 0.995
    assert straight.mask(np.ones_like(used)).all()


def write_photos(folder: Path) -> tuple[Scene, list[Path]]:
    """Photos in sub-folders: plain, turned by EXIF, of another format, with a lens, and one without a pose."""
    pictures = [picture_of_rays(camera) for camera in (PINHOLE, PINHOLE, PINHOLE, LENSES["barrel"])]
    names = ["left/plain.JPG", "left/turned.png", "right/other.tif", "right/lens.jpg"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures[0]).save(folder / names[0], "JPEG")
    save_turned(folder / names[1], pictures[1], 6)
    Image.fromarray(pictures[2]).save(folder / names[2])
    Image.fromarray(pictures[3]).save(folder / names[3], quality=98, subsampling=0)
    scene = scene_of([PINHOLE] * 3 + [LENSES["barrel"]], names, [1, 6, 1, 1])
    lost = View("lost.png", *SIZE, PINHOLE.K, "default", np.full((4, 4), np.nan), registered=False, reason="none")
    observations = (*scene.sparse.observations, (np.zeros(0, np.int64), np.zeros((0, 2))))
    scene = replace(scene, views=(*scene.views, lost), sparse=replace(scene.sparse, observations=observations))
    return scene, [folder / name for name in [*names, "lost.png"]]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_pycolmap_loads_the_folder_and_everything_in_it_fits(tmp_path: Path) -> None:
    scene, photos = write_photos(tmp_path / "photos")
    scene = replace(scene, world_offset=np.array([4e5, 5e6, 100.0]))
    masks = left_half(dict.fromkeys(photos[:3], SIZE))
    told = write_undistorted(scene, photos, tmp_path / "out", masks)
    assert told.pop("world_offset").tolist() == [4e5, 5e6, 100.0]
    assert told == {"images": 4, "copied": 1, "masks": True}
    model = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0"))
    names = {"left/plain.JPG", "left/turned.png", "right/other.tif.png", "right/lens.jpg"}
    assert {image.name for image in model.images.values()} == names
    assert model.compute_mean_reprojection_error() < 1e-6 and model.num_points3D() > 60
    assert np.abs([point.xyz for point in model.points3D.values()]).max() < 5  # without the offset
    for image in model.images.values():
        camera = model.camera(image.camera_id)
        with Image.open(tmp_path / "out" / "images" / image.name) as file:
            assert camera.model_name == "PINHOLE" and file.size == (camera.width, camera.height)
            assert not file.getexif() and file.mode == "RGB"
            pixels = np.asarray(file).astype(float)
        fx, fy, cx, cy = camera.params
        pinhole = Camera.pinhole(np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]), *file.size)
        assert np.abs(pixels - picture_of_rays(pinhole)).mean() < 1.5  # JPEG
        with Image.open(tmp_path / "out" / "masks" / f"{image.name}.png") as file:
            mask = np.asarray(file)
        assert mask.shape == pixels.shape[:2] and set(np.unique(mask)) <= {0, 255}
        if image.name == "right/lens.jpg":  # has no mask
            assert mask.all()
        else:
            assert not mask[:, :64].any() and mask[:, 64:].all()
        assert all((seen.xy >= 0).all() and (seen.xy <= file.size).all() for seen in image.points2D)
    assert (tmp_path / "out/images/left/plain.JPG").read_bytes() == photos[0].read_bytes()


def test_the_same_bytes_again_and_nothing_old_stays(tmp_path: Path) -> None:
    scene, photos = write_photos(tmp_path / "photos")
    write_undistorted(scene, photos, tmp_path / "out", left_half({}))
    stale = tmp_path / "out" / "images" / "old.png"
    stale.touch()
    (tmp_path / "out" / "mine.txt").touch()
    write_undistorted(scene, photos, tmp_path / "out")
    assert not stale.exists() and not (tmp_path / "out" / "masks").exists() and (tmp_path / "out" / "mine.txt").exists()
    (tmp_path / "out" / "mine.txt").unlink()
    write_undistorted(scene, photos, tmp_path / "again")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")


def test_upright_pixels_of_a_photo_that_exif_turns(tmp_path: Path) -> None:
    scene, photos = write_photos(tmp_path / "photos")
    write_undistorted(scene, photos, tmp_path / "out")
    with Image.open(photos[1]) as stored, Image.open(tmp_path / "out/images/left/turned.png") as written:
        assert stored.size == written.size[::-1]
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(stored)), np.asarray(written))
