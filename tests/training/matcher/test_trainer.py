"""`dune train matcher`: it learns, goes on bit for bit after a kill, and says in one sentence what it does not take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from dune_cli.cli import main
from dune_cli.matchers.dune import EncoderExtractor
from dune_cli.training.matcher import trainer
from dune_cli.training.matcher.config import MatcherConfig
from dune_cli.training.matcher.dataset import TrainingPairs
from dune_cli.training.matcher.scenes import TrainingScene
from dune_cli.training.matcher.sequences import real_pairs
from dune_cli.training.matcher.teacher_matches import SceneMatches, read_matches, write_matches
from support import match_files

pytestmark = pytest.mark.weights("efficientnet-lite2")  # the stem's part lite
SMALL = ("--size", 192, "--max-keypoints", 160, "--keypoints", 96, "--pairs", 1, "--log-every", 1)
SMALL += ("--teacher-minutes", 0, "--validation-pairs", 1, "--checkpoint-minutes", 0, "--dtype", "float32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, example_photos: Path) -> Path:
    """An encoder's file, a scene with its labels, and photos to warp."""
    folder = tmp_path_factory.mktemp("world")
    match_files.write_encoder(folder / "mini.safetensors", match_files.small_encoder())
    (folder / "photos").mkdir()
    for photo in sorted(example_photos.glob("*.png"))[:2]:
        shutil.copy(photo, folder / "photos")
    scene = match_files.write_scene(folder / "scenes" / "wall", example_photos / "astronaut.png", 2)
    write_matches(folder / "labels", wall(folder), labels_of(scene))
    return folder


def wall(world: Path) -> TrainingScene:
    return TrainingScene("wall", tuple(sorted((world / "scenes" / "wall").iterdir())), False)


def labels_of(scene: Path) -> SceneMatches:
    """Correspondences of the two photos as their homography has them."""
    rng = np.random.default_rng(0)
    points0 = rng.uniform(10, 200, (400, 2))
    H = np.array([[0.95, 0.04, 6.0], [-0.03, 1, 4], [5e-5, 0, 1]])
    moved = np.concatenate([2 * points0 + 0.5, np.ones((400, 1))], 1) @ H.T
    points1 = (moved[:, :2] / moved[:, 2:] - 0.5) / 2
    names = tuple(sorted(path.name for path in scene.iterdir()))
    each = np.stack([np.arange(400)] * 2, 1).astype(np.int32)
    sizes = np.array([[256, 256], [256, 256]], np.int32)
    points = points0.astype(np.float32), points1.astype(np.float32)
    return SceneMatches("wall", names, sizes, points, np.array([[0, 1]], np.int32), (each,), (np.ones(400),))


@pytest.fixture
def run(world: Path) -> Callable[..., Result]:
    def call(output: Path, *arguments: object) -> Result:
        words = ["train", "matcher", "--encoder", world / "mini.safetensors", "--scenes", world / "scenes"]
        words += ["--photos", world / "photos", "--labels", world / "labels", "--held-out", 0, "-o", output]
        return CliRunner().invoke(main, [str(word) for word in (*words, *SMALL, *arguments)])

    return call


def test_it_trains_reports_and_its_file_matches(run: Callable[..., Result], world: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--steps", 3)
    assert done.exit_code == 0, done.output
    assert [Path(line).name for line in done.stdout.split()] == [
        "matcher.safetensors",
        "matcher_fp16.safetensors",
        "report.json",
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training_pairs"] == 1
    assert set(report["begun_from"]) == {"xfeat", "xfeat-lighterglue"}
    assert report["validation"]["pairs"] == []  # the scene has no poses
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    from dune_cli.matchers import registry

    matcher = registry.load_matcher(
        "dune", "cpu", model=str(tmp_path / "run" / "matcher_fp16.safetensors"), encoder=str(world / "mini.safetensors")
    )
    assert "Apache-2.0" in matcher.source.licence
    again = run(tmp_path / "more", "--steps", 1, "--init", tmp_path / "run" / "matcher.safetensors")
    assert again.exit_code == 0, again.output


def test_killed_in_the_middle_it_goes_on_bit_for_bit(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "whole", "--steps", 4).exit_code == 0
    draw = TrainingPairs.draw

    def killed(self: TrainingPairs, step: int, place: int) -> object:
        if step == 2:
            raise KeyboardInterrupt
        return draw(self, step, place)

    monkeypatch.setattr(TrainingPairs, "draw", killed)
    assert run(tmp_path / "killed", "--steps", 4).exit_code == 130
    monkeypatch.setattr(TrainingPairs, "draw", draw)
    assert run(tmp_path / "killed", "--steps", 4).exit_code == 0
    one, other = (load_file(tmp_path / name / "matcher.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    changed = run(tmp_path / "killed", "--steps", 5)
    assert changed.exit_code == 2
    assert "other settings (steps: 4 → 5)" in changed.stderr


@pytest.mark.parametrize("warped", [True, False])
def test_it_learns_a_single_pair(world: Path, warped: bool) -> None:
    config = MatcherConfig(
        encoder=str(world / "mini.safetensors"),
        data=(str(world / "scenes"),),
        photos=(str(world / "photos"),),
        context=("xfeat4", "lite4", "tokens"),
        keypoints=96,
        max_keypoints=160,
        size_px=192,
        warped_share=float(warped),
    )
    head, _ = trainer.initial_head(config)
    pairs = real_pairs([wall(world)], world / "labels", 0)
    assert len(pairs) == 1 and pairs[0].F is None  # a plane fixes no epipolar geometry
    eye = EncoderExtractor(match_files.small_encoder())
    example = TrainingPairs(config, eye, head, pairs, sorted((world / "photos").iterdir())).draw(1, 0)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], 1e-4)
    values = []
    for _ in range(16):
        loss, _ = trainer.pair_loss(head, example, False)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--context", "colour"), "--context 'colour' is unknown; allowed: xfeat4, lite4, lite8, tokens"),
        (("--lr", 0), "--lr 0.0 must be above 0"),
        (("--warped", 2), "--warped 2.0 must lie between 0 and 1"),
        (("--scenes", "/nowhere"), "--scenes /nowhere is no folder"),
        (("--photos", "/nowhere"), "--photos /nowhere is no folder"),
        (("--validate", "moon"), "--scenes has no scene moon"),
        (("--dtype", "float16"), "--dtype float16 is too narrow"),
        (("--labels", "/nowhere"), "/nowhere labels no pair"),
    ],
)
def test_refusals(run: Callable[..., Result], tmp_path: Path, arguments: tuple[object, ...], says: str) -> None:
    result = run(tmp_path / "run", "--steps", 1, *arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("dune:")]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1 and says in lines[0], result.output


def test_a_benchmark_scene_among_the_labels_is_refused(run: Callable[..., Result], world: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(world / "labels", labels)
    shutil.copy(labels / "wall.matches.safetensors", labels / "fern.matches.safetensors")
    result = run(tmp_path / "run", "--steps", 1, "--labels", labels)
    assert result.exit_code == 2
    assert "fern, scenes that 'dune eval pairs' tests on" in result.stderr


def test_teachers_matches_are_read_as_written(world: Path, tmp_path: Path) -> None:
    found = read_matches(world / "labels", wall(world))
    wanted = labels_of(world / "scenes" / "wall")
    assert found.names == wanted.names
    for key in ("points", "matches", "scores"):
        for one, other in zip(getattr(found, key), getattr(wanted, key)):
            np.testing.assert_array_equal(one, other)
