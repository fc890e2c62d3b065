"""Several references without a map: one pose together, in the frame of the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.io.photos import Photo
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.multi_reference import MultiReferencePose, localize_from_references
from dune_cli.sfm.relative_pose import (
    CameraImage,
    MatcherBackend,
    PairBackend,
    Relocalization,
    SolverConfig,
    TwoViewBackend,
    failed_relocalization,
    relocalize,
)
from dune_cli.tasks import reloc
from support import synthetic_scenes
from support.exact_models import ExactDescriptors

WIDTH, HEIGHT = 320, 240
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
POSES = {
    "query": synthetic_scenes.pose((0.01, -0.03, 0.01), (0.25, 0.05, 0.3)),
    "left": synthetic_scenes.pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "right": synthetic_scenes.pose((0.02, -0.06, 0.0), (0.6, 0.0, 0.1)),
    "high": synthetic_scenes.pose((-0.02, -0.02, 0.0), (0.2, -0.4, 0.4)),
    "turned": synthetic_scenes.pose((0.01, 0.06, 0.01), (0.25, 0.05, 0.3)),  # on the query's spot
}


def shot(name: str, seed: int = 0) -> CameraImage:
    rgb, depth = synthetic_scenes.render(K, POSES.get(name, np.eye(4)), WIDTH, HEIGHT, seed)
    return CameraImage(Photo(Path(f"{name}.png"), rgb, "0" * 64), K, "given", depth)


@pytest.fixture(scope="module")
def shots() -> dict[str, CameraImage]:
    return {name: shot(name) for name in POSES} | {"elsewhere": shot("elsewhere", 7)}


@pytest.fixture(scope="module")
def sift() -> MatcherBackend:
    return MatcherBackend(Sift(WIDTH, 1500))


def joint(
    backend: PairBackend, query: CameraImage, references: Sequence[CameraImage], solver: str
) -> tuple[MultiReferencePose | None, list[Relocalization]]:
    config = SolverConfig(solver)
    seen_query, seen = backend.extract(query), [backend.extract(one) for one in references]
    commons, pairs = [], []
    for reference, one in zip(seen, references):
        try:
            commons.append(backend.match(reference, seen_query))
            pairs.append(relocalize(commons[-1], config))
        except JobFailed as error:
            commons.append(None)
            pairs.append(failed_relocalization(one, query, config, str(error), True))
    return localize_from_references(backend, seen, seen_query, commons, pairs, config), pairs


def truth(name: str, frame: str) -> np.ndarray:
    """frame_from_name."""
    return poses.inverse(POSES[frame]) @ POSES[name]


def without_depth(shots: dict[str, CameraImage], *names: str) -> list[CameraImage]:
    return [replace(shots[name], depth=None) for name in names]


def unit(*names: str) -> float:
    return float(np.linalg.norm(POSES[names[0]][:3, 3] - POSES[names[1]][:3, 3]))


def check(found: MultiReferencePose, length: float, degrees: float = 0.2, share: float = 0.03) -> None:
    """All poses against the truth, whose lengths are divided by `length`."""
    frame = Path(found.pose.reference.name).stem
    for name, pose in [("query", found.pose.ref_from_query)] + [
        (Path(used.image.name).stem, used.ref_from_this) for used in found.references
    ]:
        there = truth(name, frame)
        assert np.degrees(poses.rotation_angle(there[:3, :3].T @ pose[:3, :3])) < degrees
        np.testing.assert_allclose(pose[:3, 3], there[:3, 3] / length, atol=share)


def test_references_that_see_parallax_make_a_map(sift: MatcherBackend, shots: dict[str, CameraImage]) -> None:
    query, *references = without_depth(shots, "query", "left", "right", "high", "elsewhere")
    found, pairs = joint(sift, query, references, "essential")
    assert {used.image.name for used in found.references} == {"left.png", "right.png", "high.png"}
    assert found.pose.scale == "arbitrary" and found.references[0].image.name == found.pose.reference.name
    names = [name for name in ("left", "right", "high") if f"{name}.png" in found.pose.scale_from]
    assert len(names) == 2
    check(found, unit(*names))
    assert found.pose.inliers > 60 and 0.8 < found.pose.confidence < 1
    assert found.localization.covariance.shape == (6, 6)
    assert np.linalg.norm(found.localization.position_std) < 0.05 and found.localization.rotation_std_deg < 0.5
    tree = reloc.document(pairs, {}, found)
    assert len(tree["candidates"]) == 4 and len(tree["joint"]["references"]) == 3
    assert tree["scale_note"] == found.pose.scale_from
    words = reloc.joint_in_words(found)
    assert "3 references together" in words and "lengths are in units of the distance between" in words


def test_a_reference_on_the_querys_spot_takes_part(sift: MatcherBackend, shots: dict[str, CameraImage]) -> None:
    """Alone it tells no direction; with others that see parallax it tells the place."""
    query, *references = without_depth(shots, "query", "turned", "left")
    found, pairs = joint(sift, query, references, "essential")
    assert [pair.success for pair in pairs] == [False, True]
    check(found, unit("turned", "left"))
    assert len(found.references) == 2


def test_depths_of_references_are_put_together(sift: MatcherBackend, shots: dict[str, CameraImage]) -> None:
    query, *references = [shots[name] for name in ("query", "left", "high", "elsewhere")]
    found, pairs = joint(sift, query, references, "pnp")
    assert (found.pose.scale, found.pose.scale_from) == ("metric", "the depth maps of the references")
    assert {used.image.name for used in found.references} == {"left.png", "high.png"}
    check(found, 1.0, share=0.01)
    assert found.pose.inliers > max(pair.inliers for pair in pairs)
    assert "+-" in reloc.joint_in_words(found) and " m," in reloc.joint_in_words(found)


def test_a_two_view_model_knows_metres(shots: dict[str, CameraImage]) -> None:
    known = [(shots[name].photo.rgb, K, POSES[name]) for name in ("query", "left", "right")]
    backend = TwoViewBackend(ExactDescriptors(known))
    query, *references = without_depth(shots, "query", "left", "right")
    found, _ = joint(backend, query, references, "pnp")
    assert found.pose.scale == "metric" and len(found.references) == 2
    check(found, 1.0, degrees=0.5, share=0.05)


def test_what_cannot_be_put_together(sift: MatcherBackend, shots: dict[str, CameraImage]) -> None:
    query, left, elsewhere = without_depth(shots, "query", "left", "elsewhere")
    assert joint(sift, query, [left], "essential")[0] is None
    assert joint(sift, query, [left, elsewhere], "essential")[0] is None
    assert joint(sift, query, [left, left], "essential")[0] is None  # one photo twice
    with_depth = [shots["left"], shots["elsewhere"]]
    assert joint(sift, shots["query"], with_depth, "pnp")[0] is None
    assert joint(sift, shots["elsewhere"], [shots["left"], shots["high"]], "pnp")[0] is None
