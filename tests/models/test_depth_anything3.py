"""Depth Anything 3 against the published implementation's outputs, through files in the published layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from dune_cli import load_depth, load_multiview
from dune_cli.errors import UserError
from dune_cli.geometry.pose_conditioning import normalised_poses, similarity_to_predicted
from dune_cli.geometry.poses import inverse
from dune_cli.geometry.ray_cameras import camera_from_rays
from dune_cli.io.bounded_resize import bounded_resize, cropped_to_smallest
from dune_cli.models.da3_backbone import choose_reference_view
from dune_cli.models.da3_cameras import encode_cameras, rotation_from_xyzw, xyzw_from_rotation
from dune_cli.models.da3_heads import position_map
from dune_cli.models.depth_anything3 import MonocularDepth, combine_with_metric, fill_sky, quantile, sky_mask
from dune_cli.sfm.multiview import MultiViewConfig, MultiViewModel, from_corner, with_ray_cameras
from support.da3_files import images_of, shared_da3
from support.published_files import Fixture, make_image

TOLERANCE = 1e-4  # of the array's root mean square
K_TOLERANCE = 1e-4  # of each value
MINI = ("da3_metric_mini", "da3_mono_mini")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@cache
def small() -> MultiViewModel:
    return load_multiview(shared_da3("da3_small"))


@cache
def monocular(name: str) -> MonocularDepth:
    model = load_depth(shared_da3(name))
    assert isinstance(model, MonocularDepth)
    return model


def off(found: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of the expected array's root mean square."""
    values = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
    assert values.shape == expected.shape
    size = float(np.sqrt((expected.astype(np.float64) ** 2).mean()))
    return float(np.abs(values - expected).max()) / (size or 1.0)


def off_K(found: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference of an entry; zeros must be zeros."""
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found) - expected)[expected == 0].max(initial=0)) + float(
        np.abs(np.asarray(found)[expected != 0] / expected[expected != 0] - 1).max()
    )


@pytest.mark.parametrize("name", ["one", "three"])
def test_views(name: str) -> None:
    fixture = Fixture("da3_small")
    case, stride, expected = fixture.config["cases"][name], fixture.config["stride"], fixture.expected
    images, network = images_of(case), small().network
    out = network(images, rays=True)
    features = network.backbone.views(images)
    found = {
        "depth": out.depth[:, ::stride, ::stride],
        "conf": out.confidence[:, ::stride, ::stride],
        "ray": out.rays[:, ::stride, ::stride],
        "ray_conf": out.ray_confidence[:, ::stride, ::stride],
        "extrinsics": out.cam_from_world[:, :3],
        "pose_encoding": out.pose_encoding,
        "cam_feature": features.camera[:, ::13],
        **{f"feat{level}": tokens[:, ::11, ::13] for level, tokens in enumerate(features.levels)},
    }
    assert {key: value for key in found if (value := off(found[key], expected[f"{name}/{key}"])) > TOLERANCE} == {}
    assert off_K(out.K, expected[f"{name}/intrinsics"]) < K_TOLERANCE
    assert torch.equal(network(images).depth, out.depth)  # rays are a branch of their own
    identity = (out.world_from_cam @ out.cam_from_world).numpy()
    assert np.abs(identity - np.eye(4)).max() < 1e-5


def test_reference_view() -> None:
    fixture = Fixture("da3_small")
    case = fixture.config["cases"]["three"]
    images = images_of(case)
    for strategy, view in case["reference_by_strategy"].items():
        out = small().network(images, strategy=strategy)
        assert out.reference_view == view
        if strategy == "first":
            assert off(out.cam_from_world[:, :3], fixture.expected["three/extrinsics_first"]) < TOLERANCE
    with pytest.raises(ValueError, match="unknown strategy 'best'; allowed: saddle_balanced, first"):
        small().network(images, strategy="best")
    with pytest.raises(UserError, match="reference 'best' is unknown; allowed: saddle_balanced"):
        MultiViewConfig(reference="best")


def test_the_reference_view_goes_to_the_front_and_back() -> None:
    """Views in another order give the same outputs in that order, where the choice does not depend on the order."""
    images = images_of({"hw": [42, 56], "image_seeds": [1, 2, 3, 4, 5]})
    out, order = small().network(images), torch.tensor([3, 0, 4, 2, 1])
    again = small().network(images[order])
    assert order[again.reference_view] == out.reference_view
    assert off(again.depth, out.depth[order].numpy()) < TOLERANCE
    assert off(again.cam_from_world, out.cam_from_world[order].numpy()) < TOLERANCE


def test_choice_of_the_reference_view() -> None:
    cls = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 8))) * torch.tensor([1.0, 2, 3, 4])[:, None]
    assert choose_reference_view(cls[:2], "middle") == 0 and choose_reference_view(cls, "middle") == 2
    units = cls / cls.norm(dim=1, keepdim=True)
    similarity = units @ units.T
    measures = [(similarity.sum(1) - 1) / 3, cls.norm(dim=1), units.var(1)]
    scores = sum(((m - m.min()) / (m.max() - m.min() + 1e-8) - 0.5).abs() for m in measures)
    assert choose_reference_view(cls, "saddle_balanced") == int(scores.argmin())
    spread = similarity - torch.eye(4)
    ranges = spread.max(1).values - spread.min(1).values
    assert ranges[choose_reference_view(cls, "saddle_sim_range")] == pytest.approx(float(ranges.max()))


def test_given_poses() -> None:
    fixture = Fixture("da3_small")
    posed, expected, stride = fixture.config["posed"], fixture.expected, fixture.config["stride"]
    images = images_of(fixture.config["cases"][posed["case"]])
    given, K = np.array(posed["extrinsics"]), np.array(posed["intrinsics"])
    normalised = normalised_poses(given)
    assert off(normalised, expected["posed/extrinsics_normalized"]) < TOLERANCE
    size = (images.shape[-2], images.shape[-1])
    encodings = encode_cameras(torch.from_numpy(normalised), torch.from_numpy(K), size).float()
    network = small().network
    assert off(network.camera_encoder(encodings)[:, ::5], expected["posed/camera_token"]) < TOLERANCE
    out = network(images, encodings)
    assert off(out.depth[:, ::stride, ::stride], expected["posed/depth"]) < TOLERANCE
    assert off(out.confidence[:, ::stride, ::stride], expected["posed/conf"]) < TOLERANCE
    assert off(out.cam_from_world[:, :3], expected["posed/extrinsics"]) < TOLERANCE
    assert off_K(out.K, expected["posed/intrinsics"]) < K_TOLERANCE
    out = small()(images, given, K)
    assert out.pose_scale == pytest.approx(posed["scale"], rel=1e-4)
    assert off(out.depth[:, ::stride, ::stride], expected["posed/aligned_scaled_depth"]) < TOLERANCE
    assert off(out.cam_from_world[:, :3], expected["posed/aligned_scaled_extrinsics"]) < TOLERANCE
    assert off_K(out.K, K.astype(np.float32)) < K_TOLERANCE
    moved = small()(images, torch.from_numpy(given[:, :3]), K, MultiViewConfig(keep_given_poses=False))
    assert off(moved.cam_from_world, expected["posed/aligned_poses_extrinsics"]) < TOLERANCE
    assert off(moved.depth[:, ::stride, ::stride], expected["posed/depth"]) < TOLERANCE


def test_normalisation_takes_the_lower_median() -> None:
    fixture = Fixture("da3_small")
    given = np.array(fixture.config["normalize4"])
    assert off(normalised_poses(given), fixture.expected["normalize4/extrinsics_normalized"]) < TOLERANCE
    near = np.tile(np.eye(4), (3, 1, 1))
    near[:, 0, 3] = 0, 0.01, 0.02
    assert normalised_poses(near)[2, 0, 3] == pytest.approx(0.2)  # by 0.1, not by 0.01


@pytest.mark.parametrize("count", [3, 9, 10, 25])
def test_similarity_to_the_predicted_world(count: int) -> None:
    rng = np.random.default_rng(count)
    given = np.tile(np.eye(4), (count, 1, 1))
    given[:, :3, 3] = rng.normal(size=(count, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    predicted = given.copy()
    predicted[:, :3, 3] = 2.5 * given[:, :3, 3] @ turn.T + [1, 2, 3]
    if count >= 10:
        predicted[0, :3, 3] += 100  # one wrong prediction, which RANSAC leaves out
    found = similarity_to_predicted(given, predicted)
    assert np.allclose(found[:3, :3], 2.5 * turn) and np.allclose(found[:3, 3], [1, 2, 3])


def test_given_poses_that_do_not_determine_a_similarity() -> None:
    line = np.tile(np.eye(4), (4, 1, 1))
    line[:, 0, 3] = range(4)
    for poses in (line, line[:2]):
        with pytest.raises(ValueError, match=f"{len(poses)} given poses do not determine .* three or more are needed"):
            similarity_to_predicted(poses, poses)


@pytest.mark.parametrize("view", [0, 1])
def test_cameras_of_rays(view: int) -> None:
    fixture = Fixture("da3_small")
    expected = fixture.expected
    rays, confidence = expected["raypose/ray"][view], expected["raypose/ray_conf"][view]
    pose, K = camera_from_rays(rays, confidence, tuple(fixture.config["raypose"]["hw"]))
    assert off(inverse(pose)[:3], expected["raypose/extrinsics"][view]) < TOLERANCE
    assert off_K(K, expected["raypose/intrinsics"][view]) < K_TOLERANCE
    wrong = rays.copy()
    wrong[::3, ::2, :3] = np.random.default_rng(0).normal(size=wrong[::3, ::2, :3].shape)
    sure = np.where((wrong == rays).all(-1), confidence, 0.5 * confidence)
    pose, K = camera_from_rays(wrong, sure, tuple(fixture.config["raypose"]["hw"]))
    assert off(pose[:3, :3], inverse(np.vstack([expected["raypose/extrinsics"][view], [[0, 0, 0, 1]]]))[:3, :3]) < 0.1
    with pytest.raises(ValueError, match="0 rays point forward or backward; 8 are needed"):
        camera_from_rays(np.zeros((4, 4, 6)), np.ones((4, 4)), (56, 56))


def test_cameras_of_rays_of_a_scene() -> None:
    images = images_of({"hw": [42, 56], "image_seeds": [1, 2]})
    out = small()(images, config=MultiViewConfig(cameras="rays"))
    assert torch.equal(out.K, with_ray_cameras(small().network(images, rays=True), 0).K)  # seeded
    assert out.rays.shape == (2, 24, 32, 6) and out.ray_confidence.min() > 1


@pytest.mark.parametrize("name", ["shrink", "grow", "lower", "crop"])
def test_preparation(name: str) -> None:
    fixture = Fixture("da3_small")
    case = fixture.config["prepare"][name]
    prepared = bounded_resize(_photo(case["hw"], case["image_seed"]), case["process_res"], 14, case["method"])
    assert [prepared.height, prepared.width] == case["out_hw"]
    found = np.rint(255 * prepared.image)[:, ::3, ::3]
    assert np.abs(found - fixture.expected[f"prepare/{name}"]).max() <= 1
    K = from_corner(prepared.network_from_image) @ np.array(case["K"])
    assert np.abs(K - np.array(case["K_out"])).max() < 1e-4


@pytest.mark.parametrize(
    ("size", "process", "expected"),
    [
        ((504, 378), 504, (504, 378)),
        ((504, 385), 504, (504, 392)),
        ((7, 504), 504, (14, 504)),
        ((3, 900), 504, (14, 504)),
    ],
)
def test_sizes_of_the_preparation(size: tuple[int, int], process: int, expected: tuple[int, int]) -> None:
    rgb = _photo(size, 1)
    prepared = bounded_resize(rgb, process, 14)
    assert (prepared.height, prepared.width) == expected
    if size == expected:  # nothing happens to what fits
        assert np.array_equal(np.rint(255 * prepared.image), rgb.transpose(2, 0, 1))


def test_preparation_refuses() -> None:
    with pytest.raises(UserError, match=r"900 x 3 px becomes 504 x 2 px, on one side less than one patch of 14 px"):
        bounded_resize(_photo((3, 900), 1), 504, 14, "upper_bound_crop")
    with pytest.raises(UserError, match="unknown preparation 'stretch'; allowed: upper_bound_resize"):
        bounded_resize(_photo((30, 40), 1), 504, 14, "stretch")


def test_photos_of_different_sizes_are_cropped_to_the_smallest() -> None:
    photos = [_photo(size, seed) for seed, size in enumerate([(60, 80), (80, 60), (70, 71)])]
    prepared = small().prepare(photos, MultiViewConfig(size_px=84))
    alone = [bounded_resize(photo, 84, 14) for photo in photos]
    height, width = min(one.height for one in alone), min(one.width for one in alone)
    assert prepared[0].image.shape[1:] == (height, width)
    for one, whole in zip(prepared, alone):
        top, left = (whole.height - height) // 2, (whole.width - width) // 2
        assert np.array_equal(one.image, whole.image[:, top : top + height, left : left + width])
        corner = one.network_from_image @ [0, 0, 1] - whole.network_from_image @ [0, 0, 1]
        assert np.allclose(corner, [-left, -top, 0])
    assert cropped_to_smallest(prepared)[1].image.shape == prepared[1].image.shape
    out = small()(photos, config=MultiViewConfig(size_px=84))
    assert torch.equal(out.depth, small().network(torch.from_numpy(np.stack([p.image for p in prepared]))).depth)
    tensors = [torch.from_numpy(photo.transpose(2, 0, 1) / 255.0) for photo in photos]
    assert torch.equal(small()(tensors, config=MultiViewConfig(size_px=84)).depth, out.depth)
    batch = small()(tensors[0][None].float(), config=MultiViewConfig(size_px=84))  # 60 x 80: no whole patches
    assert torch.equal(batch.depth, small()(photos[:1], config=MultiViewConfig(size_px=84)).depth)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_any_number_of_views_on_odd_grids(count: int) -> None:
    images = images_of({"hw": [42, 70], "image_seeds": range(count)})
    out = small()(images)
    assert out.depth.shape == out.confidence.shape == (count, 42, 70)
    assert out.K.shape == (count, 3, 3) and out.world_from_cam.shape == (count, 4, 4) and out.sky is None
    assert out.depth.min() > 0 and out.confidence.min() > 1
    assert torch.equal(out.K[:, 0, 2], torch.full((count,), 35.0))


def test_wrong_calls_are_value_errors() -> None:
    model, images = small(), torch.zeros(3, 3, 42, 56)
    with pytest.raises(ValueError, match="multiples of the patch size 14; received 43x56"):
        model.network(torch.zeros(1, 3, 43, 56))
    with pytest.raises(ValueError, match="extrinsics were given without intrinsics; give both, or neither"):
        model(images, torch.eye(4).repeat(3, 1, 1))
    with pytest.raises(ValueError, match=r"extrinsics must be \(3, 4, 4\), one a view; received \(2, 4, 4\)"):
        model(images, torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(3, 1, 1))
    with pytest.raises(ValueError, match=r"intrinsics must be \(3, 3, 3\), one a view; received \(3, 3\)"):
        model(images, torch.eye(4).repeat(3, 1, 1), torch.eye(3))
    with pytest.raises(ValueError, match=r"images must be \(V, 3, H, W\)"):
        model(torch.zeros(3, 42, 56))
    with pytest.raises(ValueError, match="no views were given"):
        model([])
    with pytest.raises(ValueError, match="hold numbers that are not finite"):
        model(images, torch.full((3, 4, 4), torch.nan), torch.eye(3).repeat(3, 1, 1))
    assert torch.equal(model(images, None, torch.eye(3).repeat(3, 1, 1)).depth, model(images).depth)


@pytest.mark.parametrize(
    ("name", "case_name"), [(name, case) for name in MINI for case in Fixture(name).config["cases"]]
)
def test_single_photos(name: str, case_name: str) -> None:
    fixture = Fixture(name)
    case, expected, model = fixture.config["cases"][case_name], fixture.expected, monocular(name)
    images, stride = images_of(case), case["stride"]
    raw, depth, features = model.raw(images), model(images), model.backbone.views(images)
    token = 171 if case_name == "square" else 11
    found = {
        "depth_raw": raw.depth[:, ::stride, ::stride],
        "sky": raw.sky[:, ::stride, ::stride],
        "depth": depth[:, ::stride, ::stride],
        **{f"feat{level}": tokens[:, ::token, ::13] for level, tokens in enumerate(features.levels)},
    }
    wrong = {key: value for key in found if (value := off(found[key], expected[f"{case_name}/{key}"])) > TOLERANCE}
    assert wrong == {}
    mask = sky_mask(raw.sky)[:, ::stride, ::stride].numpy()
    assert np.array_equal(mask, expected[f"{case_name}/sky_mask"])
    if not model.metric:
        with pytest.raises(ValueError, match="relative depth, which no intrinsics make metric"):
            model(images, torch.eye(3))
        return
    metres = model(images, torch.tensor(case["intrinsics"]))
    assert off(metres[:, ::stride, ::stride], expected[f"{case_name}/depth_metric"]) < TOLERANCE


def test_nested_combination() -> None:
    fixture = Fixture("da3_metric_mini")
    case, expected = fixture.config["nested"], fixture.expected
    model = load_multiview(shared_da3(case["anyview"]), metric=shared_da3("da3_metric_mini"))
    out = model(images_of(case))
    stride = case["stride"]
    assert out.metric_scale == pytest.approx(case["scale_factor"], rel=1e-4)
    assert off(out.depth[:, ::stride, ::stride], expected["nested/depth"]) < TOLERANCE
    assert off(out.confidence[:, ::stride, ::stride], expected["nested/conf"]) < TOLERANCE
    assert off(out.cam_from_world[:, :3], expected["nested/extrinsics"]) < TOLERANCE
    assert off_K(out.K, expected["nested/intrinsics"]) < K_TOLERANCE
    assert out.sky is not None and model.source.sha256 != model.metric.source.sha256 and len(model.sources) == 2
    maps = model.metric.maps(images_of(case))
    everything = type(maps)(maps.depth, sky=torch.ones_like(maps.depth))
    with pytest.raises(ValueError, match="takes all but 0 pixels for sky, so that it cannot set the scale"):
        combine_with_metric(model.network(images_of(case)), everything)
    with pytest.raises(UserError, match="is no metric model of Depth Anything 3; da3metric-large is one"):
        load_multiview(shared_da3(case["anyview"]), metric=shared_da3("da3_mono_mini"))


def test_depth_of_images_of_any_size() -> None:
    model = monocular("da3_metric_mini")
    images = images_of({"hw": [50, 75], "image_seeds": [3]})
    depth = model(images)
    assert depth.shape == (1, 50, 75) and torch.isfinite(depth).all()
    K = torch.tensor([[60.0, 0, 37], [0, 70, 25], [0, 0, 1]])
    metres = model(images, K)  # 56 x 70 in the network
    assert torch.allclose(metres, depth * (60 * 70 / 75 + 70 * 56 / 50) / 2 / 300)
    assert torch.allclose(model(images, K, flip=True), (metres + model(images.flip(-1), K).flip(-1)) / 2)
    with pytest.raises(ValueError, match=r"intrinsics must be \(3, 3\) or \(1, 3, 3\); received \(2, 3, 3\)"):
        model(images, torch.eye(3).repeat(2, 1, 1))
    one_view = load_depth(shared_da3("da3_small"))
    assert one_view(images).shape == (1, 50, 75)
    square = images_of({"hw": [42, 42], "image_seeds": [3, 4]})
    alone = torch.cat([small().network(image[None]).depth for image in square])
    assert off(one_view(square), alone.numpy()) < TOLERANCE  # images of a batch are scenes of their own


def test_sky_is_filled_over_all_views() -> None:
    depth = torch.arange(200.0).reshape(2, 10, 10)
    sky = torch.zeros_like(depth)
    sky[0, :2, :5] = 0.3
    assert torch.equal(fill_sky(depth, sky), depth)  # ten pixels are not enough
    sky[0, 2, 0] = 0.3
    filled = fill_sky(depth, sky)
    rest = depth[sky < 0.3].numpy()
    assert filled[0, 0, 0] == pytest.approx(np.quantile(rest, 0.99), rel=1e-6)
    assert torch.equal(filled[sky < 0.3], depth[sky < 0.3])
    assert torch.equal(fill_sky(depth, torch.ones_like(sky)), depth)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=1001))
    assert all(float(quantile(values, q)) == pytest.approx(float(torch.quantile(values, q))) for q in (0, 0.3, 0.99, 1))


def test_quaternions() -> None:
    rng = np.random.default_rng(0)
    xyzw = torch.from_numpy(rng.normal(size=(50, 4)))
    xyzw = torch.cat([xyzw, torch.eye(4, dtype=torch.float64)])
    units = xyzw / xyzw.norm(dim=1, keepdim=True)
    units = torch.where(units[:, 3:] < 0, -units, units)
    found = xyzw_from_rotation(rotation_from_xyzw(xyzw))
    assert torch.allclose(found, units, atol=1e-12)


def test_position_map() -> None:
    """Its first quarter is the sine of the columns' places on a plane whose diagonal is 2."""
    grid = position_map(16, (3, 5), 5 / 3, torch.device("cpu"))[0]
    s_x = 5 / np.sqrt(34)
    places = np.linspace(-s_x * 4 / 5, s_x * 4 / 5, 5)
    assert np.allclose(grid[0, 1], 0.1 * np.sin(places), atol=1e-7)
    assert np.allclose(grid[5, 1], 0.1 * np.cos(places * 100**-0.25), atol=1e-7)
    assert np.allclose(grid[8, :, 2], 0.1 * np.sin(np.linspace(-1, 1, 3) * 3 / np.sqrt(34) * 2 / 3), atol=1e-7)


def _photo(size: tuple[int, int], seed: int) -> np.ndarray:
    image = make_image([1, 3, *size], seed)[0].permute(1, 2, 0).numpy()
    return np.rint(255 * image).astype(np.uint8)
