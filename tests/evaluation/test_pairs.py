"""Reading pair sets, scoring made-up matchers, summaries, and the chance column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.evaluation import pairs as benchmark
from dune_cli.geometry import poses
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.provenance import Source

K = [[300.0, 0.0, 159.5], [0.0, 300.0, 119.5], [0.0, 0.0, 1.0]]
POSE = poses.from_rotation_translation(
    poses.rotation_from_rotvec(np.array([0.02, -0.1, 0.03])), np.array([1.0, 0.1, 0.2])
)


def entry(**changes: Any) -> dict[str, Any]:
    pair = {"id": "one", "image_a": "a.png", "image_b": "../b.png", "K_a": K, "K_b": K, "T_a2b": POSE.tolist()}
    return {key: value for key, value in (pair | changes).items() if value is not None}


def write_set(folder: Path, name: str, pairs: list[Any]) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for path in (folder / name / "a.png", folder / "b.png"):
        Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(path)
    path = folder / name / "pairs.json"
    path.write_text(json.dumps({"name": name, "pairs": pairs}))
    return path


class Oracle(Matcher):
    """Exact matches of random points, at any size of the photos it is given."""

    name = "oracle"
    working_size_px = 320
    source = Source("oracle")

    def __init__(self, share_right: float = 1.0) -> None:
        self.share_right = share_right
        self.seen: list[tuple[int, ...]] = []

    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        self.seen.append(rgb1.shape)
        rng = np.random.default_rng(0)
        points = rng.uniform([-2, -1.5, 4], [2, 1.5, 9], (200, 3))
        scale = rgb1.shape[1] / 320
        pixels = []
        for seen in (points, poses.transform_points(POSE, points)):
            projected = seen @ np.array(K).T
            pixels.append((projected[:, :2] / projected[:, 2:] + 0.5) * scale - 0.5)
        wrong = rng.random(200) >= self.share_right
        pixels[1][wrong] = rng.uniform(0, 320, (int(wrong.sum()), 2))
        return Matches(*pixels, np.ones(200, np.float32), 200, 200, 1.0, 1.0)


class Blind(Oracle):
    """Never finds anything."""

    def match(self, rgb1: np.ndarray, rgb2: np.ndarray) -> Matches:
        nothing = np.zeros((0, 2))
        return Matches(nothing, nothing, np.zeros(0, np.float32), 0, 0, 1.0, 1.0)


def test_photos_are_found_relative_to_their_file_and_outside_the_root(tmp_path: Path) -> None:
    write_set(tmp_path, "near", [entry()])
    (pair,) = benchmark.read_pairs(tmp_path / "near")
    assert pair.image2.resolve() == tmp_path / "b.png"
    assert (pair.set_name, pair.id) == ("near", "one")
    np.testing.assert_array_equal(pair.cam2_from_cam1, POSE)


def test_selecting_sets(tmp_path: Path) -> None:
    for name in ("dgp", "hololens", "wide"):
        write_set(tmp_path, name, [entry(id=f"{name}{i}") for i in range(3)])
    pairs = benchmark.read_pairs(tmp_path)
    assert len(benchmark.select_pairs(pairs, [], None)) == 9
    assert {p.set_name for p in benchmark.select_pairs(pairs, ["easy"], None)} == {"dgp", "hololens"}
    assert [p.id for p in benchmark.select_pairs(pairs, ["wide"], 2)] == ["wide0", "wide1"]
    assert benchmark.set_groups(pairs)["easy"] == ["dgp", "hololens"]
    assert "easy" not in benchmark.set_groups(benchmark.select_pairs(pairs, ["wide"], None))
    with pytest.raises(UserError, match="unknown set outdoor; this folder has: dgp, hololens, wide"):
        benchmark.select_pairs(pairs, ["outdoor"], None)


@pytest.mark.parametrize("size_px", [0, 160, 480])
def test_exact_matches_score_no_error_at_any_size(tmp_path: Path, size_px: int) -> None:
    write_set(tmp_path, "set", [entry()])
    oracle = Oracle()
    ((name, score),) = benchmark.score_pair({"o": oracle}, benchmark.read_pairs(tmp_path)[0], [size_px], 1.0, 0)
    assert name == "o"
    assert oracle.seen == [(120, 160, 3) if size_px == 160 else (240, 320, 3)], "reduced, never enlarged"
    assert score.success
    assert score.error_deg < 1e-3, "the intrinsics follow the size"
    assert (score.matches, score.inliers) == (200, 200)


def test_failures_count_as_180_degrees(tmp_path: Path) -> None:
    write_set(tmp_path, "set", [entry()])
    pair = benchmark.read_pairs(tmp_path)[0]
    scores = [s for _, s in benchmark.score_pair({"blind": Blind(), "oracle": Oracle(0.6)}, pair, [0], 1.0, 0)]
    assert (scores[0].rotation_deg, scores[0].error_deg, scores[0].success) == (180, 180, False)
    assert scores[1].inliers == pytest.approx(120, abs=15)
    summary = benchmark.summarise([scores])
    assert summary.failures == 1
    assert summary.auc20 == pytest.approx(0.5, abs=0.01)
    assert summary.matches == 100


def test_the_calibration_has_the_poses_that_reloc_gives_out(tmp_path: Path) -> None:
    write_set(tmp_path, "near", [entry()])
    write_b = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(write_b).save(tmp_path / "b.png")  # one photo twice is refused
    (pair,) = benchmark.read_pairs(tmp_path)
    samples = dict(benchmark.confidence_samples({"oracle": Oracle(), "blind": Blind()}, pair, 0))
    assert set(samples) == {"oracle"} and samples["oracle"].confidence > 0.9 and samples["oracle"].error_deg < 0.5
    off = [
        benchmark.ConfidenceSample("near", "x", sure, error) for sure, error in ((0.92, 7.0), (0.97, 30.0), (0.4, 3.0))
    ]
    bins = {(one.low, one.high): one for one in benchmark.confidence_calibration([samples["oracle"], *off])}
    assert bins[0.3, 0.5].poses == 1 and bins[0.3, 0.5].within5 == 1
    assert bins[0.9, 1.0].poses == 3 and bins[0.9, 1.0].within10 == pytest.approx(2 / 3)
    assert bins[0.5, 0.7].poses == 0 and np.isnan(bins[0.5, 0.7].within5)


def test_chance_is_poor_and_repeatable(tmp_path: Path) -> None:
    write_set(tmp_path, "set", [entry()])
    pairs = benchmark.read_pairs(tmp_path)
    summary = benchmark.summarise(benchmark.random_poses(pairs, 0, seed=1))
    assert summary == benchmark.summarise(benchmark.random_poses(pairs, 0, seed=1))
    assert summary.auc10 < 0.05
    assert summary.translation_deg == pytest.approx(90, abs=12)
    assert summary.rotation_deg == pytest.approx(np.degrees(np.linalg.norm([0.02, -0.1, 0.03])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K_a": None}, "pair 0 lacks K_a"),
        ({"K_b": [[1, 2], [3, 4]]}, "K_b is not a list of 3 x 3 numbers"),
        ({"T_a2b": "identity"}, "T_a2b is not a list of 4 x 4 numbers"),
        ({"T_a2b": np.eye(4).tolist()}, "no translation"),
        ({"T_a2b": np.diag([2.0, 1, 1, 1]).tolist()}, "no rigid pose"),
        ({"image_a": 7}, "image_a is a whole number; a text is needed"),
        ({"image_a": "gone.png"}, "1 photos named by pairs.json files are missing: .*gone.png"),
    ],
)
def test_broken_pairs_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_set(tmp_path, "set", [entry(**changes)])
    with pytest.raises(UserError, match=message):
        benchmark.read_pairs(tmp_path)


@pytest.mark.parametrize("change", [{"K_a": None}, {"T_a2b": None}, {"T_a2b": np.eye(4).tolist()}])
def test_pairs_without_a_truth_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    write_set(tmp_path, "some", [entry(), entry(**change, id="lost"), entry(**change, id="too")])
    write_set(tmp_path, "none", [entry(**change)])
    assert [(pair.set_name, pair.id) for pair in benchmark.read_pairs(tmp_path)] == [("some", entry()["id"])]
    messages = capsys.readouterr().err
    assert "some/pairs.json, pair 1" in messages and "and 1 more" in messages and "none/pairs.json, pair 0" in messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "is not a set of pairs"),
        ('{"pairs": [3]}', "pair 0 is a whole number; an object is needed"),
        ('{"pairs": 3}', "list"),
    ],
)
def test_files_that_are_no_set_of_pairs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(UserError, match=message):
        benchmark.read_pairs(tmp_path)


def test_roots_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs"):
        benchmark.read_pairs(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        benchmark.read_pairs(tmp_path / "absent")


def test_shared_pairs_are_read(shared_data: Path) -> None:
    pairs = benchmark.read_pairs(shared_data / "pairs")
    assert len(pairs) == 92
    assert {name: len(members) for name, members in benchmark.set_groups(pairs).items()}["easy"] == 3
