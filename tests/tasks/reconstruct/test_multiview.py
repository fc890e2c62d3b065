"""Scenes of a multi-view model: one whose depth and cameras are exact, in a world and a unit of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry import cameras
from dune_cli.geometry.poses import inverse, rotation_angle, rotation_from_rotvec
from dune_cli.geometry.sim3 import move_poses
from dune_cli.io.bounded_resize import bounded_resize
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.models.depth_anything3 import MultiViewOutput
from dune_cli.provenance import Run, Source
from dune_cli.sfm.multiview import K_from_centres
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct.config import MultiviewConfig
from dune_cli.tasks.reconstruct.multiview import reconstruct
from support import synthetic_scenes
from support.half_masks import check_left_half_is_empty, left_half
from support.posed_sets import POSES, SIZE, VIEWS, K, write_set

SIZE_PX = 168  # 168 x 126: the photos' shape
SCALE = 0.3


class ExactMultiView:
    """Knows the photos of `posed_sets` by their order. Its world is turned and moved, its unit is 1/SCALE m."""

    patch = 14
    sources = (Source("exact", "ef" * 32, "none"),)

    def __init__(self, views: list[int], sky: bool = False) -> None:
        self.views, self.sky, self.encodings = views, sky, None
        self.own_from_world = np.eye(4)
        self.own_from_world[:3, :3] = SCALE * rotation_from_rotvec(np.array([0.4, -0.2, 0.9]))
        self.own_from_world[:3, 3] = 3, -2, 1

    def predict(self, images: torch.Tensor, encodings: torch.Tensor | None, config: object) -> MultiViewOutput:
        self.encodings = encodings
        assert images.shape == (len(self.views), 3, 126, 168)
        to_network = bounded_resize(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), SIZE_PX, 14).network_from_image
        K_network = to_network @ K
        depth = np.stack([synthetic_scenes.render(K_network, POSES[v], 168, 126, samples=1)[1] for v in self.views])
        depth = np.nan_to_num(SCALE * depth, nan=50.0)
        poses = inverse(move_poses(self.own_from_world, POSES[self.views]))
        one = torch.ones(depth.shape)
        return MultiViewOutput(
            depth=torch.from_numpy(depth),
            confidence=2 * one,
            cam_from_world=torch.from_numpy(poses).float(),
            K=torch.from_numpy(K_from_centres(np.stack([K_network] * len(depth)))),
            pose_encoding=torch.zeros(len(depth), 9),
            reference_view=0,
            sky=one * (torch.arange(126)[:, None] < 40) if self.sky else None,
            metric_scale=1.0 if self.sky else None,
        )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_set(tmp_path_factory.mktemp("set")) / "made"
    return [folder / f"{view}.png" for view in range(VIEWS)]


def default(infos: list) -> list[PhotoCamera]:
    return [PhotoCamera.of_matrix(cameras.K_from_fov(55, *SIZE), "default", *SIZE) for _ in infos]


def given(infos: list) -> list[PhotoCamera]:
    return [PhotoCamera.of_matrix(K, "given", *SIZE) for _ in infos]


def scene_of(
    paths: list[Path],
    model: ExactMultiView,
    cameras_of: Callable = default,
    poses: dict[Path, np.ndarray] | None = None,
    **settings: object,
) -> Scene:
    config = MultiviewConfig(size_px=SIZE_PX, **settings)
    return reconstruct(paths, cameras_of, model, config, Run(), poses)


def test_a_scene_has_the_first_camera_as_its_world(photos: list[Path]) -> None:
    scene = scene_of(photos, ExactMultiView(list(range(VIEWS))))
    expected = inverse(POSES[0]) @ POSES
    step = np.median(np.linalg.norm(np.diff(POSES[:, :3, 3], axis=0), axis=1))
    expected[:, :3, 3] /= step
    for view, pose in zip(scene.views, expected):
        assert np.abs(view.world_from_cam - pose).max() < 1e-5
        assert np.abs(view.K - K).max() < 1e-3 and view.focal_source == "estimated"
        assert view.dense is not None and view.dense.valid.mean() > 0.5
    assert np.array_equal(scene.views[0].world_from_cam, np.eye(4))
    network = bounded_resize(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), SIZE_PX, 14).network_from_image
    true = synthetic_scenes.render(network @ K, POSES[2], 168, 126, samples=1)[1]
    off = np.abs(scene.views[2].depth * step / true - 1)
    assert np.nanmax(off) < 1e-5
    assert (scene.scale, scene.method, len(scene.pairs)) == ("arbitrary", "pointmap", 10)
    assert "the median step between cameras is 1" in scene.scale_note
    assert all(pair.inliers > 0.8 * pair.matches > 0 for pair in scene.pairs)
    assert 0 < scene.reprojection_error_px < 3 and scene.parallax_deg > 1
    assert "points of a confidence of 2 or more are kept" in scene.notes[0]


def test_masked_pixels_have_no_points(photos: list[Path]) -> None:
    scene = scene_of(photos, ExactMultiView(list(range(VIEWS))), masks=left_half(dict.fromkeys(photos, SIZE)))
    check_left_half_is_empty(scene)


def test_two_photos_and_a_baseline(photos: list[Path]) -> None:
    pair, model = photos[:2], ExactMultiView([0, 1])
    assert scene_of(pair, model).baseline() == pytest.approx(1, abs=1e-6)
    scene = scene_of(pair, model, baseline=0.25)
    assert scene.scale == "metric" and scene.baseline() == pytest.approx(0.25, abs=1e-6)
    assert scene.fused is None and scene.scale_note is None


def test_a_metric_model_sets_the_scale_and_takes_out_the_sky(photos: list[Path]) -> None:
    scene = scene_of(photos, ExactMultiView(list(range(VIEWS)), sky=True))
    length = np.linalg.norm(POSES[1, :3, 3] - POSES[0, :3, 3])
    assert scene.scale == "metric" and scene.baseline() == pytest.approx(SCALE * length, rel=1e-5)
    assert not any(view.dense.valid[:40].any() for view in scene.views)


@pytest.mark.parametrize("fixed", [True, False])
def test_known_poses_set_the_world(photos: list[Path], fixed: bool) -> None:
    poses, model = dict(zip(photos, POSES)), ExactMultiView(list(range(VIEWS)))
    scene = scene_of(photos, model, given, poses, fixed_poses=fixed)
    assert model.encodings is not None and model.encodings.shape == (VIEWS, 9)
    for view, pose in zip(scene.views, POSES):
        assert np.abs(view.world_from_cam - pose).max() < 1e-5
        assert view.focal_source == ("given" if fixed else "estimated")
    assert (scene.scale, scene.scale_note, scene.world) == (
        "arbitrary",
        "lengths are those of --poses",
        "that of --poses",
    )
    assert all(pair.inliers > 0.8 * pair.matches > 0 for pair in scene.pairs)


def test_large_coordinates_have_an_offset(photos: list[Path]) -> None:
    far = POSES.copy()
    far[:, :3, 3] += 4e6
    scene = scene_of(photos, ExactMultiView(list(range(VIEWS))), given, dict(zip(photos, far)))
    assert scene.world_offset is not None
    assert np.abs(scene.pose_in_world(scene.views[3]) - far[3]).max() < 1e-4
    assert any("coordinates are large" in note for note in scene.notes)


def test_the_cloud_is_fused(photos: list[Path]) -> None:
    scene = scene_of(photos, ExactMultiView(list(range(VIEWS))), fuse=True)
    assert scene.fused is not None and len(scene.fused.points_world) > 1000


def test_copies_are_left_out(photos: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(photos[0].read_bytes())
    scene = scene_of([photos[0], copy, photos[1]], ExactMultiView([0, 1]))
    assert [view.registered for view in scene.views] == [True, False, True]
    assert "it is the same picture as" in scene.views[1].reason and scene.pairs[0].images == (0, 2)
    with pytest.raises(JobFailed, match="all 2 photos are the same picture"):
        scene_of([photos[0], copy], ExactMultiView([0]))


def test_poses_that_do_not_do(photos: list[Path]) -> None:
    model, poses = ExactMultiView(list(range(VIEWS))), dict(zip(photos, POSES))
    with pytest.raises(UserError, match=r"--poses lacks 0.png and 1 more, and this model takes poses of all photos"):
        scene_of(photos, model, given, {photo: poses[photo] for photo in photos[2:]})
    with pytest.raises(UserError, match=r"the focal length of 0.png is not known, and this model takes --poses only"):
        scene_of(photos, model, default, poses)
    with pytest.raises(UserError, match="--poses and --baseline both set the scale"):
        scene_of(photos, model, given, poses, baseline=1.0)
    with pytest.raises(UserError, match="does not do for this model: 2 given poses do not determine"):
        scene_of(photos[:2], ExactMultiView([0, 1]), given, {photo: poses[photo] for photo in photos[:2]})


def test_no_point_is_sure(photos: list[Path]) -> None:
    with pytest.raises(JobFailed, match="no point reaches the confidence 5 on a surface; lower --min-confidence"):
        scene_of(photos, ExactMultiView(list(range(VIEWS))), min_confidence=5.0)


def test_rotations_are_rotations(photos: list[Path]) -> None:
    for view in scene_of(photos, ExactMultiView(list(range(VIEWS)))).views:
        rotation = view.world_from_cam[:3, :3]
        assert np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-12 and rotation_angle(rotation) < 1
