"""Lenses through the networks that see photos as pinhole cameras take them: exact networks on photos that are rendered
through lenses give cameras, points and colours at the photos' own pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dune_cli.cli import main
from dune_cli.geometry import cameras, poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.bounded_resize import bounded_resize
from dune_cli.io.cache import WorkFolder
from dune_cli.io.camera_files import colmap_entry
from dune_cli.io.colmap.read import open_model
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.photos import read_photo
from dune_cli.io.png import save_png
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.models.depth_anything3 import MultiViewOutput
from dune_cli.models.mast3r import ViewFeatures
from dune_cli.provenance import Run, Source
from dune_cli.sfm.multiview import K_from_centres
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct import multiview, pointmaps
from dune_cli.tasks.reconstruct.config import MultiviewConfig, PointmapsConfig
from dune_cli.tasks.reconstruct.export import write_colmap_model
from support import synthetic_scenes
from support.exact_models import ExactManyViews, ExactTwoView
from support.half_masks import left_half

SIZE = (320, 240)
BARREL = Camera("OPENCV", (260.0, 262.0, 150.0, 125.0, -0.22, 0.05, 0.001, -0.001), *SIZE)
FISHEYE = Camera("OPENCV_FISHEYE", (150.0, 151.0, 158.0, 121.0, 0.02, -0.004, 0.001, -0.0002), *SIZE)  # 140 degrees
PINCUSHION = Camera("RADIAL", (250.0, 159.5, 119.5, 0.12, 0.01), *SIZE)
LENSES = [BARREL, FISHEYE, PINCUSHION]
POSES = np.stack([synthetic_scenes.pose((0.02 * v, -0.1 * v, 0.03), (0.4 * v, 0.1 * v, 0.1 * v)) for v in range(3)])
POSES = np.linalg.inv(POSES[0]) @ POSES
STRAIGHT = [StraightPhoto.of(lens).K for lens in LENSES]


class SmallTwoView(ExactTwoView):
    size = 160


class ExactInOrder(ExactManyViews):
    """As `ExactManyViews`, of photos that are encoded in the order of the cameras."""

    size = 160

    def encode(self, images: torch.Tensor) -> ViewFeatures:
        self.encoded += 1
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        return ViewFeatures(torch.full((1, grid[0] * grid[1], 4), float(self.encoded - 1)), grid)


class ExactMultiView:
    """Depth Anything 3 with the true depth and poses, and a focal length of its own, 3 % too long."""

    patch, sources = 14, [Source("exact", "ab" * 32, "none")]

    def predict(self, images: torch.Tensor, encodings: torch.Tensor | None, config: object) -> MultiViewOutput:
        height, width = images.shape[-2:]
        resized = bounded_resize(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), width, 14).network_from_image
        Ks = [resized @ K for K in STRAIGHT]
        depth = [synthetic_scenes.render(K, pose, width, height, samples=1)[1] for K, pose in zip(Ks, POSES)]
        wrong = np.stack([K_from_centres(K @ np.diag([1.03, 1.03, 1])) for K in Ks])
        return MultiViewOutput(
            depth=torch.from_numpy(np.nan_to_num(np.stack(depth), nan=50.0)),
            confidence=torch.full((len(Ks), height, width), 2.0),
            cam_from_world=torch.from_numpy(poses.inverse(POSES)).float(),
            K=torch.from_numpy(wrong),
            pose_encoding=torch.zeros(len(Ks), 9),
            reference_view=0,
            sky=None,
            metric_scale=1.0,
        )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lenses")
    for number, (lens, pose) in enumerate(zip(LENSES, POSES)):
        save_png(folder / f"{number}.png", synthetic_scenes.render_lens(lens, pose, samples=1))
    return [folder / f"{number}.png" for number in range(len(LENSES))]


def given(infos: list) -> list[PhotoCamera]:
    return [PhotoCamera(LENSES[int(info.path.stem)], "given", lens_known=True) for info in infos]


def check(scene: Scene, photos: list[Path], exact: float) -> None:
    """Cameras are the lenses; every point is seen by them at the map's pixel, which shows its colour."""
    for view, lens, pose, path in zip(scene.views, LENSES, POSES, photos):
        assert view.focal_source == "given" and view.lens == lens
        np.testing.assert_array_equal(view.K, lens.K)
        np.testing.assert_allclose(view.world_from_cam, pose, atol=exact)
        dense = view.dense
        valid = dense.valid
        assert valid.mean() > 0.4
        pixels = cameras.transform_pixels(dense.image_from_map, cameras.pixel_grid(*valid.shape))[valid]
        in_photo = lens.distort(pixels)
        assert (in_photo >= -0.5).all() and (in_photo <= np.array(SIZE) - 0.5).all()
        points = poses.transform_points(poses.inverse(pose), dense.points_world[valid])
        np.testing.assert_allclose(lens.project(points), in_photo, atol=600 * exact)
        x, y = np.rint(in_photo).astype(int).clip(0, np.array(SIZE) - 1).T
        apart = np.abs(read_photo(path).rgb[y, x].astype(int) - dense.colors[valid]).max(-1)
        assert np.median(apart) < 30


def test_two_photos_with_lenses(photos: list[Path], tmp_path: Path) -> None:
    network = SmallTwoView(STRAIGHT[:2], list(POSES[:2]), [SIZE] * 2)
    scene = pointmaps.reconstruct(photos[:2], given, network, PointmapsConfig(), Run())
    check(scene, photos[:2], 3e-3)
    write_colmap_model(scene, tmp_path / "model", binary=True)
    written = open_model(tmp_path / "model").images
    assert {image.name: colmap_entry(image.camera).model for image in written.values()} == {
        "0.png": "OPENCV",
        "1.png": "OPENCV_FISHEYE",
    }


def test_masks_of_a_photo_with_a_lens_are_in_its_own_pixels(photos: list[Path]) -> None:
    network = SmallTwoView(STRAIGHT[:2], list(POSES[:2]), [SIZE] * 2)
    masks = left_half(dict.fromkeys(photos, SIZE))
    scene = pointmaps.reconstruct(photos[:2], given, network, PointmapsConfig(masks=masks), Run())
    for view, lens in zip(scene.views, LENSES):
        grid = cameras.pixel_grid(*view.dense.valid.shape)[view.dense.valid]
        assert lens.distort(cameras.transform_pixels(view.dense.image_from_map, grid))[:, 0].min() >= SIZE[0] / 2 - 1


def test_many_photos_with_lenses(photos: list[Path], tmp_path: Path) -> None:
    network = ExactInOrder(STRAIGHT, list(POSES), [SIZE] * 3, scales=0.1)
    scene = pointmaps.reconstruct(
        photos, given, network, PointmapsConfig(fuse=True), Run(), WorkFolder(tmp_path), dict(zip(photos, POSES))
    )
    check(scene, photos, 6e-3)
    assert len(scene.fused.points_world) > 3_000
    again = ExactInOrder([lens.K for lens in LENSES], list(POSES), [SIZE] * 3)
    pinholes = [PhotoCamera.of_matrix(lens.K, "given", *SIZE) for lens in LENSES]
    pointmaps.reconstruct(photos, lambda _: pinholes, again, PointmapsConfig(), Run(), WorkFolder(tmp_path))
    assert again.encoded == 3  # a photo without its lens is another input


def test_the_command_writes_lenses_to_every_file(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [BARREL, Camera("OPENCV", (*BARREL.params[:4], -0.2, 0.04, 0.0, 0.0), *SIZE)]
    for number in (0, 1):
        save_png(tmp_path / f"{number}.png", synthetic_scenes.render_lens(two[number], POSES[number], samples=1))
    network = SmallTwoView([StraightPhoto.of(lens).K for lens in two], list(POSES[:2]), [SIZE] * 2)
    (tmp_path / "exact.pth").touch()
    monkeypatch.setattr("dune_cli.sfm.multiview.load_scene_model", lambda *_: network)
    words = ";".join(",".join(map(str, [lens.model, *SIZE, *lens.colmap_params])) for lens in two)
    target, files = tmp_path / "scene.ply", [str(tmp_path / f"{number}.png") for number in (0, 1)]
    exports = [f"--{name}" for name in ("colmap", "transforms", "undistort", "depths")]
    places = [str(tmp_path / name) for name in ("model", "transforms.json", "straight", "depths")]
    wanted = [word for pair in zip(exports, places) for word in pair]
    told = CliRunner().invoke(
        main,
        [
            "reconstruct",
            *files,
            "-o",
            str(target),
            "--model",
            str(tmp_path / "exact.pth"),
            "--intrinsics",
            words,
            *wanted,
        ],
    )
    assert told.exit_code == 0, told.output
    for form in (places[0], places[1], str(target.with_suffix(".json"))):
        again = resolve_cameras([read_photo(file) for file in files], form, None)
        for one, lens in zip(again, two):
            assert one.camera.model == "OPENCV"
            np.testing.assert_allclose(one.camera.params, lens.params, atol=1e-6)
    depths = json.loads((Path(places[3]) / "depths.json").read_text())["depths"]
    assert [one["camera"]["model"] for one in depths] == ["OPENCV", "OPENCV"]
    straight = open_model(Path(places[2]) / "sparse" / "0").images.values()
    assert {image.camera.model_name for image in straight} == {"PINHOLE"}


def test_a_multi_view_model_keeps_given_lenses(photos: list[Path]) -> None:
    config = MultiviewConfig(size_px=168)
    check(multiview.reconstruct(photos, given, ExactMultiView(), config, Run()), photos, 1e-4)
