"""`dune mapfree` and `dune eval mapfree` on a small ray-cast data set: scores, interruption, and what is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dune_cli.cli import main
from dune_cli.evaluation import mapfree, mapfree_submission
from dune_cli.geometry import poses
from dune_cli.io.photos import read_photo
from dune_cli.sfm.relative_pose import SolverConfig, TwoViewBackend
from support.exact_models import ExactDescriptors
from support.mapfree_sets import HEIGHT, TRACK, WIDTH, K, world_from_query, write_root
from support.published_files import Fixture, mast3r_tree

Dune = Callable[..., CompletedProcess[str]]
UNIT = ("--matcher", "sift", "--unit-translation", "--quiet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("mapfree"))


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(320, 1000))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def refused(result: Result, exit_code: int, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("dune: ")]
    assert len(lines) == 1 and "unexpected" not in lines[0]
    for word in words:
        assert word in lines[0]


def members(path: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


@pytest.fixture(scope="module")
def submission(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without interruption writes."""
    target = tmp_path_factory.mktemp("submission") / "s.zip"
    with pytest.MonkeyPatch.context() as patch:
        from dune_cli.matchers import sift

        patch.setattr(sift, "build", lambda *_: sift.Sift(320, 1000))
        result = run("mapfree", root, *UNIT, "-o", target)
    assert result.exit_code == 0 and result.stdout == f"{target}\n", result.output
    return target


def test_the_official_layout(submission: Path) -> None:
    assert [path.name for path in submission.parent.iterdir()] == ["s.zip"]
    found = members(submission)
    assert list(found) == ["pose_s00000.txt", "pose_s00001.txt"]
    for scene, lines in enumerate(found.values()):
        assert [line.split(" ")[0] for line in lines] == TRACK
        for line, frame in zip(lines, (0, 5, 10, 15)):
            values = [float(field) for field in line.split(" ")[1:]]
            assert len(values) == 8 and values[7] == int(values[7]) >= 8
            pose = poses.inverse(
                poses.from_rotation_translation(poses.rotation_from_quaternion(np.array(values[:4])), values[4:7])
            )
            truth = world_from_query(scene, frame)
            assert np.degrees(poses.rotation_angle(pose[:3, :3] @ truth[:3, :3].T)) < 1
            assert np.degrees(poses.vector_angle(pose[:3, 3], truth[:3, 3])) < 6
            assert np.linalg.norm(pose[:3, 3]) == pytest.approx(1, abs=1e-6)


def test_it_scores_through_eval(root: Path, submission: Path, tmp_path: Path) -> None:
    words = ("eval", "mapfree", root, "--split", "val", "--submission", submission)
    result = run(*words, "--json", "-o", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert json.loads((tmp_path / "scores.json").read_text()) == tree
    scores = tree["scores"]
    assert (tree["schema"], tree["split"]) == ("dune.eval-mapfree/1", "val")
    assert scores == mapfree.score(root / "val", submission)
    assert scores["Estimates for % of frames"] == 1
    assert scores["Average Median Rotation Error"] < 1
    assert scores["Average Median Translation Error"] > 0.5  # of length 1, not metres
    table = run(*words)
    assert [line.split("  ")[0] for line in table.stdout.splitlines()] == list(scores)


@pytest.mark.parametrize("solver", ["pnp", "essential"])
def test_a_two_view_model_scores_in_metres(root: Path, tmp_path: Path, solver: str) -> None:
    scenes = mapfree_submission.read_scenes(root / "val")
    found = {}
    for number, scene in enumerate(scenes):
        names = ["seq0/frame_00000.jpg", *TRACK]
        views = [np.eye(4), *(world_from_query(number, frame) for frame in (0, 5, 10, 15))]
        photos = [(read_photo(scene.path / name).rgb, K, view) for name, view in zip(names, views)]
        sight = TwoViewBackend(ExactDescriptors(photos))
        found[scene.name] = dict(mapfree_submission.relocalize_scene(scene, sight, SolverConfig(solver), {}))
    mapfree_submission.write_submission(tmp_path / "s.zip", found)
    scores = mapfree.score(root / "val", tmp_path / "s.zip")
    assert scores["Average Median Translation Error"] < 0.02
    assert scores["Average Median Rotation Error"] < 0.5
    assert scores["Precision @ Pose Error < (25.0cm, 5deg)"] == scores["AUC @ VCRE < 90px"] == 1


def test_interrupted_and_resumed_the_bytes_are_the_same(
    root: Path, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, looks = tmp_path / "s.zip", []
    add = mapfree_submission.SubmissionProgress.add

    def interrupt(self, scene: str, frame: str, line: str | None) -> None:
        looks.append(frame)
        if len(looks) == 6:
            raise KeyboardInterrupt
        add(self, scene, frame, line)

    with monkeypatch.context() as patch:
        patch.setattr(mapfree_submission.SubmissionProgress, "add", interrupt)
        assert run("mapfree", root, *UNIT, "-o", target).exit_code == 130
    assert not target.exists()
    work = tmp_path / "s.zip.work"
    assert sorted(path.name for path in work.iterdir()) == ["s00000.jsonl", "s00001.jsonl", "settings.json"]
    with (work / "s00001.jsonl").open("a") as file:
        file.write('["seq1/frame_00005.jpg", "cut o')  # a line that a power cut left

    settled = []
    with monkeypatch.context() as patch:
        patch.setattr(
            mapfree_submission.SubmissionProgress,
            "add",
            lambda self, *entry: (settled.append(entry[1]), add(self, *entry)),
        )
        assert run("mapfree", root, *UNIT, "-o", target).exit_code == 0
    assert settled == TRACK[1:]  # of the second scene: nothing is done twice
    assert target.read_bytes() == submission.read_bytes()
    assert not work.exists()


def test_another_run_is_not_resumed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "s.zip"
    with monkeypatch.context() as patch:
        patch.setattr(mapfree_submission, "write_submission", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("mapfree", root, *UNIT, "-o", target).exit_code == 130
    refused(run("mapfree", root, *UNIT, "--seed", 1, "-o", target), 2, "other settings (seed)", "--overwrite")
    result = run("mapfree", root, *UNIT, "--seed", 1, "--overwrite", "--json", "-o", target)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert (tree["schema"], tree["scale"], tree["solver"]) == ("dune.mapfree/1", "arbitrary", "essential")
    assert tree["scenes"] == {"s00000": {"frames": 4, "poses": 4}, "s00001": {"frames": 4, "poses": 4}}
    refused(run("mapfree", root, *UNIT, "-o", target), 2, "--overwrite")


def test_frames_without_a_pose_are_left_out(root: Path, tmp_path: Path) -> None:
    """Another place, one photo that is missing, and a scene where nothing is found at all."""
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    first, second = (copy / "val" / name for name in ("s00000", "s00001"))
    shutil.copy(second / TRACK[1], first / TRACK[1])
    (first / TRACK[2]).unlink()
    for name in TRACK:
        shutil.copy(root / "val" / "s00000" / name, second / name)
    result = run("mapfree", copy, *UNIT[:-1], "-o", tmp_path / "s.zip")
    assert result.exit_code == 0 and "s00000 (1 of 2): 2 of 3 frames" in result.stderr
    assert "not metric" in result.stderr
    found = members(tmp_path / "s.zip")
    assert [line.split(" ")[0] for line in found["pose_s00000.txt"]] == [TRACK[0], TRACK[3]]
    assert found["pose_s00001.txt"] == []
    scores = mapfree.score(copy / "val", tmp_path / "s.zip")
    assert scores["Estimates for % of frames"] == 2 / 8


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "fault, arguments, words",
    [
        (None, ["--matcher", "sift"], "the scale of a matcher's pose is unknown"),
        (None, ["--model", "x.pth", "--unit-translation"], "leave it out"),
        (None, ["--unit-translation", "--solver", "pnp"], "points in metres"),
        (None, ["--model", "x.pth", "--matcher", "sift"], "leave one out"),
        (None, [*UNIT, "--split", "test"], "holds no scene"),
        (None, ["--model", "x.pth"], "x.pth"),
        ("size", UNIT, "the intrinsics are of other images"),
        ("line", UNIT, "line 2: expected 'frame fx fy cx cy W H'"),
        ("climb", UNIT, "is no camera of a photo in this folder"),
        ("no reference", UNIT, "lacks its reference"),
        ("no reference line", UNIT, "lacks its reference"),
        ("no queries", UNIT, "has none of its"),
        ("broken photo", UNIT, "frame_00000.jpg"),
    ],
)
def test_what_is_refused(root: Path, tmp_path: Path, fault: str | None, arguments: list[str], words: str) -> None:
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    scene = copy / "val" / "s00000"
    text = scene / "intrinsics.txt"
    if fault == "size":
        edit(text, f" {WIDTH} {HEIGHT}", " 540 720")
    elif fault == "line":
        edit(text, f" {WIDTH} {HEIGHT}", f" {WIDTH}")
    elif fault == "climb":
        edit(text, "seq1/frame_00005.jpg", "../seq1/frame_00005.jpg")
    elif fault == "no reference":
        (scene / "seq0/frame_00000.jpg").unlink()
    elif fault == "no reference line":
        edit(text, "seq0/frame_00000.jpg", "seq0/frame_00001.jpg")
    elif fault == "no queries":
        shutil.rmtree(scene / "seq1")
    elif fault == "broken photo":
        (scene / "seq0/frame_00000.jpg").write_bytes(b"no photo")
    refused(run("mapfree", copy, *arguments, "-o", tmp_path / "s.zip"), 2, words)
    assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize(
    "target, words", [("s.txt", "allowed: .zip"), ("/proc/s.zip", "cannot write"), ("", "no ending")]
)
def test_outputs_are_checked_first(root: Path, tmp_path: Path, target: str, words: str) -> None:
    refused(run("mapfree", root, "--model", "absent.pth", "-o", tmp_path / target), 2, words)


def test_eval_refuses_what_is_no_submission(root: Path, tmp_path: Path) -> None:
    def evaluate(path: Path, *more: object) -> Result:
        return run("eval", "mapfree", root, "--submission", path, *more)

    with zipfile.ZipFile(tmp_path / "climbing.zip", "w") as archive:
        archive.writestr("../pose_s00000.txt", "")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "")
    (tmp_path / "text.zip").write_text("no archive")
    refused(evaluate(tmp_path / "climbing.zip"), 2, "points out of the archive")
    refused(evaluate(tmp_path / "empty.zip"), 2, "no estimate")
    refused(evaluate(tmp_path / "text.zip"), 2, "a submission ZIP is needed")
    refused(evaluate(tmp_path / "absent.zip"), 2, "absent.zip")
    refused(evaluate(tmp_path / "empty.zip", "--split", "train"), 2, "holds no scene")
    refused(evaluate(tmp_path / "empty.zip", "-o", tmp_path / "a.txt"), 2, "allowed: .json")


def test_made_up_weights_give_an_empty_submission(root: Path, tmp_path: Path) -> None:
    import torch

    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    words = ("--model", tmp_path / "mini.pth", "--size", 96, "--device", "cpu", "--quiet")
    result = run("mapfree", root, *words, "-o", tmp_path / "s.zip")
    assert result.exit_code == 0, result.output
    assert members(tmp_path / "s.zip") == {"pose_s00000.txt": [], "pose_s00001.txt": []}
