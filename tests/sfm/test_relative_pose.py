"""Relocalization on ray-cast photos with known poses: laws, lengths, and what gives no pose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.io.depth_files import read_depth
from dune_cli.io.photos import Photo, read_photo
from dune_cli.io.safe_read import read_json
from dune_cli.matchers.sift import Sift
from dune_cli.sfm import relative_pose
from dune_cli.sfm.relative_pose import (
    CameraImage,
    MatcherBackend,
    PairBackend,
    Relocalization,
    SolverConfig,
    TwoViewBackend,
    TwoViewMatches,
    relocalize,
)
from dune_cli.tasks import reloc
from support import synthetic_scenes
from support.exact_models import ExactDescriptors

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
CENTRE = np.array([0.4, 0.02, 0.1])


def shot(name: str, world_from_cam: np.ndarray, seed: int = 0, source: str = "given") -> CameraImage:
    rgb, depth = synthetic_scenes.render(K, world_from_cam, WIDTH, HEIGHT, seed)
    camera = K if source == "given" else cameras.K_from_fov(55, WIDTH, HEIGHT)
    return CameraImage(Photo(Path(name), rgb, "0" * 64), camera, source, depth)


@pytest.fixture(scope="module")
def moved() -> np.ndarray:
    return synthetic_scenes.pose((0.02, -0.07, 0.01), tuple(CENTRE))


@pytest.fixture(scope="module")
def pair(moved: np.ndarray) -> tuple[CameraImage, CameraImage]:
    """Reference (camera 0) and query, both with their depth."""
    return shot("reference.png", np.eye(4)), shot("query.png", moved)


@pytest.fixture(scope="module")
def sift() -> MatcherBackend:
    """At the photos' own size and with few keypoints: quick."""
    return MatcherBackend(Sift(WIDTH, 1500))


def compare(backend: PairBackend, reference: CameraImage, query: CameraImage) -> TwoViewMatches:
    return backend.match(backend.extract(reference), backend.extract(query))


def without_depth(one: CameraImage) -> CameraImage:
    return replace(one, depth=None)


def errors(result: Relocalization, truth: np.ndarray) -> tuple[float, float, float]:
    """Rotation and direction in degrees, the camera's centre in metres, against the true ref_from_query."""
    assert result.ref_from_query is not None, result.message
    found = result.ref_from_query
    rotation = poses.rotation_angle(found[:3, :3] @ truth[:3, :3].T)
    direction = poses.vector_angle(found[:3, 3], truth[:3, 3])
    return *np.degrees([rotation, direction]), float(np.linalg.norm(found[:3, 3] - truth[:3, 3]))


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_depth_of_the_reference_gives_metres(sift: MatcherBackend, pair, moved: np.ndarray, solver: str) -> None:
    common = compare(sift, *pair)
    result = relocalize(common, SolverConfig(solver))
    rotation, direction, metres = errors(result, moved)
    assert rotation < 0.1 and direction < 0.5 and metres < 0.005
    assert (result.scale, result.scale_from) == ("metric", "the depth map of the reference")
    assert result.distance == pytest.approx(np.linalg.norm(CENTRE), abs=0.005)
    assert result.rotation_deg == pytest.approx(np.degrees(np.linalg.norm([0.02, -0.07, 0.01])), abs=0.1)
    assert 100 < result.inliers <= result.matches and result.confidence > 0.9
    # the depth's unit is that of the translation
    doubled = relocalize(replace(common, points=2 * common.points), SolverConfig(solver))
    np.testing.assert_allclose(doubled.ref_from_query[:3, 3], 2 * result.ref_from_query[:3, 3], atol=1e-4)
    np.testing.assert_allclose(doubled.ref_from_query[:3, :3], result.ref_from_query[:3, :3], atol=1e-4)


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_swapped_photos_give_the_inverse(sift: MatcherBackend, pair, solver: str) -> None:
    there, back = (relocalize(compare(sift, *two), SolverConfig(solver)) for two in (pair, pair[::-1]))
    assert there.query_from_ref is not None and back.ref_from_query is not None
    rotation = poses.rotation_angle(there.query_from_ref[:3, :3] @ back.ref_from_query[:3, :3].T)
    assert np.degrees(rotation) < 0.05
    np.testing.assert_allclose(there.query_from_ref[:3, 3], back.ref_from_query[:3, 3], atol=0.004)


def test_without_lengths_only_the_direction(sift: MatcherBackend, pair, moved: np.ndarray) -> None:
    common = compare(sift, without_depth(pair[0]), pair[1])
    result = relocalize(common, SolverConfig("essential"))
    assert (result.scale, result.distance) == ("arbitrary", pytest.approx(1.0))
    assert "--baseline" in result.scale_from and "unknown" in reloc.in_words(result)
    assert max(errors(result, moved)[:2]) < 0.3
    known = relocalize(common, SolverConfig("essential", baseline=2.5))
    assert (known.scale, known.distance) == ("metric", pytest.approx(2.5))
    np.testing.assert_allclose(known.ref_from_query[:3, 3], 2.5 * result.ref_from_query[:3, 3])


def test_a_wrong_depth_in_places_is_outvoted(sift: MatcherBackend, pair, moved: np.ndarray) -> None:
    depth = pair[0].depth.copy()
    depth[:, :100] *= np.random.default_rng(0).uniform(0.5, 2, (HEIGHT, 100))
    depth[:60] = 0
    for solver in ("pnp", "essential"):
        result = relocalize(compare(sift, replace(pair[0], depth=depth), pair[1]), SolverConfig(solver))
        assert errors(result, moved)[2] < 0.01


def test_a_turn_on_the_spot_needs_lengths(sift: MatcherBackend, pair) -> None:
    turned = shot("turned.png", synthetic_scenes.pose((0.0, 0.12, 0.0), (0.0, 0.0, 0.0)))
    common = compare(sift, pair[0], turned)
    refused = relocalize(common, SolverConfig("essential"))
    assert not refused.success and refused.inliers > 100
    assert "by a rotation alone, of 6.9 degrees" in refused.message and "--solver pnp" in refused.message
    blind = relocalize(compare(sift, without_depth(pair[0]), turned), SolverConfig("essential", baseline=1.0))
    assert not blind.success and "--ref-depth" in blind.message  # nor can a given length be a direction
    found = relocalize(common, SolverConfig("pnp"))
    assert found.success and found.distance < 0.01 and found.rotation_deg == pytest.approx(np.degrees(0.12), abs=0.05)


def test_one_photo_twice_gives_no_pose(sift: MatcherBackend, pair) -> None:
    again = replace(pair[0], photo=replace(pair[0].photo, path=Path("copy.png")))
    for solver in ("pnp", "essential"):
        result = relocalize(compare(sift, pair[0], again), SolverConfig(solver))
        assert not result.success and "are the same photo" in result.message and result.distance is None
    noise = np.random.default_rng(0).integers(-3, 4, pair[0].photo.rgb.shape)
    tripod = replace(again, photo=replace(again.photo, rgb=np.clip(pair[0].photo.rgb + noise, 0, 255).astype(np.uint8)))
    blind = relocalize(compare(sift, without_depth(pair[0]), tripod), SolverConfig("essential"))
    assert not blind.success and "from one place in one direction" in blind.message
    found = relocalize(compare(sift, pair[0], tripod), SolverConfig("pnp"))
    assert found.success and found.distance < 0.01 and found.rotation_deg < 0.1


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_another_place_gives_no_pose(sift: MatcherBackend, pair, solver: str) -> None:
    elsewhere = shot("elsewhere.png", np.eye(4), seed=7)
    result = relocalize(compare(sift, pair[0], elsewhere), SolverConfig(solver))
    assert not result.success and result.query_from_ref is None and result.confidence < relative_pose.MIN_CONFIDENCE
    assert "elsewhere.png and reference.png do not show enough of the same place" in result.message


def test_the_gate_is_the_confidence(sift: MatcherBackend, pair) -> None:
    common = compare(sift, *pair)
    confidence = relocalize(common, SolverConfig("pnp")).confidence
    assert not relocalize(common, SolverConfig("pnp", min_confidence=confidence + 1e-6)).success
    assert relocalize(common, SolverConfig("pnp", min_confidence=confidence - 1e-6)).success


def overlaid(one: CameraImage, mark: np.ndarray) -> CameraImage:
    rgb = one.photo.rgb.copy()
    rgb[-50:, :160] = mark
    return replace(one, photo=replace(one.photo, rgb=rgb))


def test_a_caption_on_two_places_is_no_pose_and_the_reason_is_told(sift: MatcherBackend, pair) -> None:
    mark = synthetic_scenes.texture(77, 0)[:50, :160].astype(np.uint8)
    one, two = overlaid(pair[0], mark), overlaid(shot("elsewhere.png", np.eye(4), seed=7), mark)
    for solver in ("pnp", "essential"):
        result = relocalize(compare(sift, one, two), SolverConfig(solver))
        assert not result.success and result.static_matches > 10 and result.confidence == 0
        assert "agree only in matches at the same pixels" in result.message


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_a_caption_on_one_place_does_not_draw_the_pose(sift: MatcherBackend, pair, moved, solver: str) -> None:
    mark = synthetic_scenes.texture(77, 0)[:50, :160].astype(np.uint8)
    result = relocalize(compare(sift, *(overlaid(each, mark) for each in pair)), SolverConfig(solver))
    assert result.static_matches > 10 and errors(result, moved)[0] < 0.1 and errors(result, moved)[1] < 1


def test_too_few_depths_are_named(sift: MatcherBackend, pair) -> None:
    sparse = np.zeros_like(pair[0].depth)
    sparse[100:112, 100:112] = pair[0].depth[100:112, 100:112]
    common = compare(sift, replace(pair[0], depth=sparse), pair[1])
    assert np.isfinite(common.points[:, 0]).sum() < relative_pose.MIN_SCALE_POINTS
    essential, pnp = (relocalize(common, SolverConfig(solver)) for solver in ("essential", "pnp"))
    assert not essential.success and "the distance is unknown" in essential.message
    assert not pnp.success and "at a known depth" in pnp.message


def test_the_same_seed_gives_the_same_pose(sift: MatcherBackend, pair) -> None:
    common = compare(sift, *pair)
    for solver in ("pnp", "essential"):
        one, two = (relocalize(common, SolverConfig(solver, seed=3)) for _ in range(2))
        np.testing.assert_array_equal(one.query_from_ref, two.query_from_ref)


@pytest.fixture(scope="module")
def model(pair, moved: np.ndarray) -> ExactDescriptors:
    return ExactDescriptors([(pair[0].photo.rgb, K, np.eye(4)), (pair[1].photo.rgb, K, moved)], noise=0.002)


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_a_two_view_model_gives_metres(model: ExactDescriptors, pair, moved: np.ndarray, solver: str) -> None:
    backend = TwoViewBackend(model)
    one, two = (without_depth(each) for each in pair)
    there = relocalize(compare(backend, one, two), SolverConfig(solver))
    rotation, direction, metres = errors(there, moved)
    assert rotation < 0.3 and direction < 2 and metres < 0.02
    assert (there.scale, there.scale_from) == ("metric", "the model's metric points")
    back = relocalize(compare(backend, two, one), SolverConfig(solver))
    np.testing.assert_allclose(back.query_from_ref, there.ref_from_query, atol=0.02)


def test_a_two_view_model_tells_unknown_focal_lengths(model: ExactDescriptors, pair, moved: np.ndarray) -> None:
    guessed = cameras.K_from_fov(40, WIDTH, HEIGHT)
    unknown = [replace(without_depth(each), K=guessed, focal_source="default") for each in pair]
    result = relocalize(compare(TwoViewBackend(model), *unknown), SolverConfig("pnp"))
    for found in (result.query, result.reference):
        assert found.focal_source == "estimated" and found.K[0, 0] == pytest.approx(K[0, 0], rel=0.01)
    assert errors(result, moved)[2] < 0.02
    mixed = relocalize(compare(TwoViewBackend(model), without_depth(pair[0]), unknown[1]), SolverConfig("pnp"))
    assert (mixed.reference.focal_source, mixed.query.focal_source) == ("given", "estimated")


def test_a_two_view_model_and_another_place(model: ExactDescriptors, pair) -> None:
    elsewhere = without_depth(shot("elsewhere.png", np.eye(4), seed=7))
    for solver in ("pnp", "essential"):
        result = relocalize(compare(TwoViewBackend(model), without_depth(pair[0]), elsewhere), SolverConfig(solver))
        assert not result.success and "do not show enough of the same place" in result.message


def test_a_point_map_without_a_focal_length_is_told(model: ExactDescriptors, pair, monkeypatch) -> None:
    unknown = replace(without_depth(pair[0]), focal_source="default")
    decode = model.decode

    def unsure(*views, **options):
        out = decode(*views, **options)
        out.confidence1 = 0 * out.confidence1 + 1
        return out

    monkeypatch.setattr(model, "decode", unsure)
    with pytest.raises(JobFailed, match=r"no focal length fits the model's points of reference.png"):
        compare(TwoViewBackend(model), unknown, without_depth(pair[1]))


def test_the_best_of_several_references(sift: MatcherBackend, pair, moved: np.ndarray) -> None:
    near = shot("near.png", synthetic_scenes.pose((0.02, -0.06, 0.0), (0.3, 0.0, 0.1)))
    elsewhere = shot("elsewhere.png", np.eye(4), seed=7)
    seen = sift.extract(pair[1])
    results = [relocalize(sift.match(sift.extract(s), seen), SolverConfig("pnp")) for s in (elsewhere, pair[0], near)]
    assert [result.success for result in results] == [False, True, True]
    best = reloc.best_of(results)
    assert best.reference.name == "near.png" and best.confidence == max(result.confidence for result in results)
    tree = reloc.document(results, {"seed": 0})
    assert tree["reference"]["image"] == "near.png" and len(tree["candidates"]) == 3
    assert [candidate["success"] for candidate in tree["candidates"]] == [False, True, True]
    assert reloc.best_of(results[:1]) is results[0] and "candidates" not in reloc.document(results[:1], {})
    # both references tell one place of the query
    world_from_query = [pose @ result.ref_from_query for pose, result in zip((np.eye(4),), results[1:2])]
    np.testing.assert_allclose(world_from_query[0][:3, 3], moved[:3, 3], atol=0.01)


def test_real_photos_with_depth(shared_data: Path) -> None:
    """HoloLens frames: two metric poses against device tracking, the photos 0.5 to 0.6 m apart."""
    folder = shared_data / "multiview" / "hololens"
    frames = {entry["file"]: entry for entry in read_json(folder / "cameras.json")["frames"]}

    def real(number: str) -> tuple[CameraImage, np.ndarray]:
        entry = frames[f"images/{number}.jpg"]
        depth = read_depth(folder / "depth" / f"{number}.png", 1000)
        photo = read_photo(folder / "images" / f"{number}.jpg")
        return CameraImage(photo, np.array(entry["K"]), "given", depth), np.array(entry["T_cam_to_world"])

    backend = MatcherBackend(Sift())
    (one, world_from_one), (two, world_from_two) = real("00061"), real("00066")
    truth = poses.inverse(world_from_one) @ world_from_two
    common = compare(backend, one, two)
    for solver in ("pnp", "essential"):
        rotation, direction, metres = errors(relocalize(common, SolverConfig(solver)), truth)
        assert rotation < 0.5 and direction < 2 and metres < 0.02  # 0.012 m measured by both
