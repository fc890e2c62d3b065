"""N photos by point maps: exact, wrongly scaled and partly false pairs of a known scene; encodes counted; resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli.checkpoints.loader import load_two_view
from dune_cli.errors import DuneError, JobFailed, UserError
from dune_cli.geometry import cameras, poses
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene
from dune_cli.tasks.reconstruct.config import PointmapsConfig
from dune_cli.tasks.reconstruct.pointmaps import reconstruct
from support import synthetic_scenes
from support.exact_models import ExactManyViews, marked
from support.half_masks import check_left_half_is_empty, left_half
from support.published_files import Fixture, mast3r_tree

VIEWS = 6
SIZES = [(320, 240) if view != 2 else (240, 320) for view in range(VIEWS)]  # one is in portrait
FOCALS = [280.0 if view != 3 else 330.0 for view in range(VIEWS)]  # and one is another camera
K = [cameras.K_from_focal(focal, *size) for focal, size in zip(FOCALS, SIZES)]
POSES = [
    synthetic_scenes.pose((0.02 * v, -0.06 * v, 0.03 * (v % 2)), (0.35 * v, 0.05 * v * (v % 2), 0.1 * v))
    for v in range(VIEWS)
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for view, (k, pose, size) in enumerate(zip(K, POSES, SIZES)):
        rgb = synthetic_scenes.render(k, pose, *size, samples=1)[0]
        paths.append(folder / f"{view}.png")
        Image.fromarray(marked(rgb, view)).save(paths[-1])
    return paths


def model(**settings) -> ExactManyViews:
    return ExactManyViews(K, POSES, SIZES, **settings)


def default(infos) -> list[PhotoCamera]:
    return resolve_cameras(infos, None, None)


def run(paths, network, folder: Path, cameras_of=default, poses_of=None, **settings) -> Scene:
    config = PointmapsConfig(**settings)
    return reconstruct(paths, cameras_of, network, config, Run(), WorkFolder(folder), poses_of)


def check(scene: Scene, turn_deg: float, shift: float, focal: float) -> None:
    assert scene.registered == list(range(VIEWS))
    for view, k, pose in zip(scene.views, K, POSES):
        off = poses.rotation_angle(view.world_from_cam[:3, :3].T @ pose[:3, :3])
        assert np.degrees(off) < turn_deg
        assert np.linalg.norm(view.world_from_cam[:3, 3] - pose[:3, 3]) < shift
        assert abs(view.K[0, 0] / k[0, 0] - 1) < focal


def test_exact_maps_give_exact_cameras_and_points(photos: list[Path], tmp_path: Path) -> None:
    network = model()
    scene = run(photos, network, tmp_path)
    check(scene, 0.1, 0.01, 0.005)
    assert network.encoded == VIEWS, "every photo is encoded once"
    assert sorted(network.seen) == list(range(VIEWS))
    assert network.decoded == VIEWS * (VIEWS - 1), "every pair in both orders"
    assert (scene.method, scene.scale, scene.world) == ("pointmap", "metric", None)
    assert len(scene.pairs) == 15
    assert min(pair.confidence for pair in scene.pairs) > 0.8
    assert scene.reprojection_error_px < 1
    for view, k, pose, size in zip(scene.views, K, POSES, SIZES):
        truth = synthetic_scenes.render(k, pose, *size, samples=1)[1]
        height, width = view.dense.valid.shape
        places = cameras.transform_pixels(view.dense.image_from_map, cameras.pixel_grid(height, width))
        x, y = np.rint(places).astype(int).clip(0, np.array(size) - 1).transpose(2, 0, 1)
        right = np.abs(view.depth / truth[y, x] - 1) < 0.02
        assert view.dense.valid.mean() > 0.6
        assert right[view.dense.valid].mean() > 0.95


def test_noise_wrong_scales_and_false_pairs_are_survived(photos: list[Path], tmp_path: Path) -> None:
    network = model(noise=0.01, wrong=0.15, scales=0.3, false=((0, 3), (4, 1)))
    scene = run(photos, network, tmp_path)
    check(scene, 1.0, 0.25, 0.03)  # lengths hang on the median of 28 random scales
    false = {pair.images: pair.confidence for pair in scene.pairs if pair.images in ((0, 3), (1, 4))}
    assert max(false.values()) < 0.6
    assert min(pair.confidence for pair in scene.pairs if pair.images not in false) > 0.7


def test_a_second_run_computes_nothing_and_says_the_same(photos: list[Path], tmp_path: Path) -> None:
    first = run(photos, model(noise=0.01), tmp_path)
    network = model(noise=0.01)
    second = run(photos, network, tmp_path)
    assert (network.encoded, network.decoded) == (0, 0)
    for a, b in zip(first.views, second.views):
        np.testing.assert_array_equal(a.world_from_cam, b.world_from_cam)
        np.testing.assert_array_equal(a.dense.points_world, b.dense.points_world)
    broken = next((tmp_path / "two-view maps").rglob("*.safetensors"))
    broken.unlink()
    run(photos, network, tmp_path)
    assert (network.encoded, network.decoded) == (0, 1), "what was lost is made again, and no more"


def test_known_intrinsics_and_poses_are_kept(photos: list[Path], tmp_path: Path) -> None:
    shift = synthetic_scenes.pose((0.3, 0.2, -0.4), (5.0, 6.0, 7.0))
    known = {path: shift @ pose for path, pose in zip(photos, POSES)}
    del known[photos[4]]
    given = [PhotoCamera.of_matrix(k, "given", *size) for k, size in zip(K, SIZES)]
    network = model(noise=0.005, scales=0.2)
    scene = run(photos, network, tmp_path, lambda infos: given, known)
    for view, path, k in zip(scene.views, photos, K):
        np.testing.assert_array_equal(view.K, k)
        if path in known:
            np.testing.assert_array_equal(view.world_from_cam, known[path])
    np.testing.assert_allclose(scene.views[4].world_from_cam, shift @ POSES[4], atol=0.05)
    assert scene.world == "that of --poses"
    assert scene.scale == "arbitrary"
    with pytest.raises(UserError, match="--poses and --baseline"):
        run(photos, network, tmp_path, lambda infos: given, known, baseline=1.0)


def test_masked_pixels_have_no_points(photos: list[Path], tmp_path: Path) -> None:
    masks = left_half(dict(zip(photos[:3], SIZES)))
    scene = run(photos[:3], model(), tmp_path, masks=masks, fuse=True)
    check_left_half_is_empty(scene)
    assert np.linalg.norm(scene.views[2].world_from_cam[:3, 3] - POSES[2][:3, 3]) < 0.02
    assert all(pair.matches <= 2 * 144 for pair in scene.pairs)  # half of the anchors, in both orders and views


def test_a_baseline_rescales(photos: list[Path], tmp_path: Path) -> None:
    scene = run(photos[:3], model(), tmp_path, baseline=2.0)
    assert scene.baseline() == pytest.approx(2.0)


@pytest.mark.parametrize(("way", "pairs"), [("sequential", 13), ("retrieval", 15)])
def test_pairs_are_chosen(photos: list[Path], tmp_path: Path, way: str, pairs: int) -> None:
    scene = run(photos, model(), tmp_path, pairs=way, neighbours=4 if way == "sequential" else 5)
    assert len(scene.pairs) == pairs or way == "sequential"
    check(scene, 0.2, 0.02, 0.01)


def test_a_list_of_pairs_may_leave_photos_out(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n1.png 3.png\n")
    scene = run(photos, model(), tmp_path / "work", pairs=str(tmp_path / "pairs.txt"))
    assert scene.registered == [0, 1, 3]
    assert scene.views[2].reason == "it is in none of the pairs"
    assert np.isnan(scene.views[2].world_from_cam).all()


def test_copies_and_groups_are_named(photos: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(photos[1].read_bytes())
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n1.png 2.png\n3.png 4.png\n")
    paths = [*photos[:5], copy]
    scene = run(paths, model(), tmp_path / "work", pairs=str(tmp_path / "pairs.txt"))
    assert scene.registered == [0, 1, 2]
    assert scene.components == ((0, 1, 2), (3, 4))
    folder = photos[0].parent.name  # names are relative to the common folder of photos and copy
    reason = f"it hangs together only with {folder}/4.png, and not with the photos that were placed"
    assert scene.views[3].reason == reason
    assert scene.views[5].reason == f"it is the same picture as {folder}/1.png"
    with pytest.raises(JobFailed, match="all 3 photos are the same picture"):
        run([photos[1], copy, copy], model(), tmp_path / "work")


def test_cameras_may_be_refined(photos: list[Path], tmp_path: Path) -> None:
    def refine_cameras(alignment, data):
        assert len(data.pairs) == 6
        return replace(alignment, K=np.stack(K[:3]))

    config = PointmapsConfig()
    scene = reconstruct(photos[:3], default, model(), config, Run(), WorkFolder(tmp_path), None, refine_cameras)
    np.testing.assert_array_equal(scene.views[1].K, K[1])


def test_too_little_confidence_is_named(photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"no point of any pair reaches the confidence 9.*--min-confidence"):
        run(photos[:3], model(), tmp_path, min_confidence=9.0)


def test_maps_that_are_noise_give_one_sentence(photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="agree"):
        run(photos[:3], model(wrong=1.0, noise=2.0), tmp_path)


def test_official_weights_run_on_four_views(photos: list[Path], tmp_path: Path) -> None:
    """Deterministic weights in the official layout are noise: a scene, or one clear sentence."""
    fixture = Fixture("mast3r_mini")
    file = tmp_path / "mini.pth"
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), file)
    network = load_two_view(file, dtype="float32")
    counted = []
    encode = network.encode
    network.encode = lambda images: counted.append(1) or encode(images)
    try:
        scene = run(photos[:4], network, tmp_path / "work", size_px=96, min_confidence=1.0)
    except DuneError as error:
        assert isinstance(error, JobFailed) and "\n" not in str(error)
    else:
        assert len(scene.views) == 4 and len(scene.registered) >= 2
        assert all(np.isfinite(scene.views[index].world_from_cam).all() for index in scene.registered)
    assert len(counted) == 4
