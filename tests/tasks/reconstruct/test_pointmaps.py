"""Two photos to a scene by point maps: with exact, noisy and partly wrong maps of a known scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import Photo
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct import pointmaps
from dune_cli.tasks.reconstruct.config import PointmapsConfig
from support import synthetic_scenes
from support.exact_models import ExactTwoView
from support.half_masks import check_left_half_is_empty, left_half

SIZES = [(400, 300), (240, 330)]
K = [cameras.K_from_focal(350.0, *SIZES[0]), cameras.K_from_focal(310.0, *SIZES[1])]
POSES = [np.eye(4), synthetic_scenes.pose((0.05, -0.2, 0.1), (0.9, 0.05, 0.1))]
GUESS = [PhotoCamera.of_matrix(cameras.K_from_fov(55, *size), "default", *size) for size in SIZES]
GIVEN = [PhotoCamera.of_matrix(k, "given", *size) for k, size in zip(K, SIZES)]


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    rendered = [synthetic_scenes.render(k, pose, *size)[0] for k, pose, size in zip(K, POSES, SIZES)]
    return [Photo(Path(f"{name}.png"), rgb, "0" * 64) for name, rgb in zip("ab", rendered)]


def reconstruct(photos: list[Photo], model: ExactTwoView, known=None, **settings) -> Scene:
    config = PointmapsConfig(**settings)
    return pointmaps.reconstruct_pair(photos, known or GUESS, model, config, Run())


def model(**settings) -> ExactTwoView:
    return ExactTwoView(K, POSES, SIZES, **settings)


def test_exact_maps_give_exact_focals_pose_and_points(photos: list[Photo]) -> None:
    scene = reconstruct(photos, model())
    for view, k, pose in zip(scene.views, K, POSES):
        assert view.focal_source == "estimated"
        assert abs(view.K[0, 0] / k[0, 0] - 1) < 1e-3 and view.K[0, 0] == view.K[1, 1]
        np.testing.assert_allclose(view.K[:2, 2], k[:2, 2])
        np.testing.assert_allclose(view.world_from_cam, pose, atol=1e-3)
    assert scene.scale == "metric" and scene.scale_note is None and scene.method == "pointmap"
    assert scene.pairs[0].confidence > 0.95 and scene.reprojection_error_px < 0.5
    for view, k, pose in zip(scene.views, K, POSES):
        assert view.dense is not None and view.dense.valid.mean() > 0.8
        height, width = view.dense.valid.shape
        pixels = cameras.transform_pixels(view.dense.image_from_map, cameras.pixel_grid(height, width))
        points_cam = poses.transform_points(poses.inverse(pose), view.dense.points_world)
        np.testing.assert_allclose(cameras.project(points_cam, k), pixels, atol=1e-2)


def test_colours_are_the_photos_own(photos: list[Photo]) -> None:
    scene = reconstruct(photos, model())
    points, colors, _ = scene.cloud()
    first = scene.views[0].dense.valid.sum()
    pixels = np.rint(cameras.project(points[:first], K[0])).astype(int)
    seen = photos[0].rgb[pixels[:, 1], pixels[:, 0]].astype(int)
    assert np.median(np.abs(seen - colors[:first])) < 15  # the map's pixels average the photo's


@pytest.mark.parametrize("honest", [False, True])
def test_noise_and_a_quarter_of_wrong_points_are_survived(photos: list[Photo], honest: bool) -> None:
    scene = reconstruct(photos, model(noise=0.004, wrong=0.25, honest=honest))
    found, truth = scene.views[1].world_from_cam, POSES[1]
    assert np.degrees(poses.rotation_angle(found[:3, :3].T @ truth[:3, :3])) < 0.5
    np.testing.assert_allclose(found[:3, 3], truth[:3, 3], atol=0.03)
    assert all(abs(view.K[0, 0] / k[0, 0] - 1) < 0.02 for view, k in zip(scene.views, K))
    if honest:  # points below the confidence are left out, the true ones stay
        assert scene.views[0].dense.valid.mean() < 0.8
        assert scene.pairs[0].confidence > 0.9


def test_given_intrinsics_are_kept_and_the_second_pass_is_saved(photos: list[Photo]) -> None:
    exact = model()
    scene = reconstruct(photos, exact, [GIVEN[0], PhotoCamera.of_matrix(K[1], "exif", *SIZES[1])])
    assert [view.focal_source for view in scene.views] == ["given", "exif"]
    np.testing.assert_array_equal(scene.views[1].K, K[1])
    assert exact.decoded == 1 and exact.encoded == 2
    np.testing.assert_allclose(scene.views[1].world_from_cam, POSES[1], atol=1e-3)
    unknown = model()
    reconstruct(photos, unknown)
    assert unknown.decoded == 2 and unknown.encoded == 2


def test_points_on_depth_edges_are_left_out_and_counted(photos: list[Photo]) -> None:
    scene = reconstruct(photos, model())
    dense, depth = scene.views[0].dense, scene.views[0].depth
    jump = np.abs(np.diff(np.where(dense.valid, depth, np.nan), axis=1)) / depth[:, 1:]
    assert np.nanmax(jump) < 0.15
    assert any("depth edges" in note for note in scene.notes)


def test_masked_pixels_have_no_points(photos: list[Photo]) -> None:
    masks = left_half({photo.path: (photo.width, photo.height) for photo in photos})
    scene = reconstruct(photos, model(), masks=masks)
    check_left_half_is_empty(scene)
    np.testing.assert_allclose(scene.views[1].world_from_cam, POSES[1], atol=5e-3)


def test_a_baseline_rescales(photos: list[Photo]) -> None:
    plain, scaled = reconstruct(photos, model()), reconstruct(photos, model(), baseline=2.0)
    assert abs(scaled.baseline() - 2) < 1e-9
    factor = 2 / plain.baseline()
    np.testing.assert_allclose(scaled.cloud()[0], factor * plain.cloud()[0], rtol=1e-9)


def test_a_seed_repeats(photos: list[Photo]) -> None:
    one, two = (reconstruct(photos, model(noise=0.004, wrong=0.2), seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.views[1].world_from_cam, two.views[1].world_from_cam)


def test_too_little_confidence_is_named(photos: list[Photo]) -> None:
    with pytest.raises(JobFailed, match=r"reach the confidence 9.*--min-confidence"):
        reconstruct(photos, model(), min_confidence=9.0)
    with pytest.raises(JobFailed, match=r"only 0 points of b\.png reach the confidence 9"):
        reconstruct(photos, model(), GIVEN, min_confidence=9.0)


def test_maps_that_are_noise_give_no_pose(photos: list[Photo]) -> None:
    with pytest.raises(JobFailed, match=r"no camera pose fits the model's points of b\.png"):
        reconstruct(photos, model(wrong=1.0, noise=0.5), GIVEN)
