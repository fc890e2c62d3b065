"""`dune reloc` as its users meet it: words, the dune.pose/1 JSON, exit codes, and what is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.geometry import cameras, poses
from dune_cli.io.png import save_png
from support import synthetic_scenes
from support.human_files import ANNY, write_small
from support.published_files import Fixture, mast3r_tree

Dune = Callable[..., CompletedProcess[str]]
WIDTH, HEIGHT = 320, 240
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
MOVED = synthetic_scenes.pose((0.02, -0.07, 0.01), (0.4, 0.02, 0.1))
SIFT = ("--matcher", "sift", "--fov-deg", "60")
KEYS = [
    *("schema", "success", "scale", "query", "reference", "ref_from_query", "query_from_ref", "rotation_deg"),
    *(
        "translation",
        "distance",
        "matches",
        "inliers",
        "fixed",
        "turned_deg",
        "confidence",
        "solver",
        "message",
        "provenance",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference with its depth, a query, another reference nearby, another place, and the reference turned."""
    folder = tmp_path_factory.mktemp("places")
    views = {
        "reference": (np.eye(4), 0),
        "query": (MOVED, 0),
        "near": (synthetic_scenes.pose((0.02, -0.06, 0.0), (0.3, 0.0, 0.1)), 0),
        "elsewhere": (np.eye(4), 7),
        "turned": (synthetic_scenes.pose((0.0, 0.12, 0.0), (0.0, 0.0, 0.0)), 0),
    }
    for name, (pose, seed) in views.items():
        rgb, depth = synthetic_scenes.render(K, pose, WIDTH, HEIGHT, seed)
        save_png(folder / f"{name}.png", rgb)
        save_png(folder / f"{name}_depth.png", np.rint(np.nan_to_num(depth) * 1000).astype(np.uint16))
    return folder


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the photos' own size."""
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(WIDTH, 1500))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["reloc", *map(str, arguments)])


def as_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def refused(result: Result, exit_code: int, *words: str) -> None:
    """One sentence that holds `words`, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("dune: ")]
    assert len(lines) == 1 and "unexpected" not in lines[0], result.stderr
    for word in words:
        assert word in lines[0]


def test_metres_by_the_depth_of_the_reference(folder: Path, tmp_path: Path) -> None:
    words = (folder / "query.png", folder / "reference.png", "--ref-depth", folder / "reference_depth.png", *SIFT)
    tree = as_json(*words, "-o", tmp_path / "pose.json")
    assert json.loads((tmp_path / "pose.json").read_text()) == tree
    assert list(tree) == KEYS
    assert (tree["schema"], tree["success"], tree["scale"], tree["solver"]) == ("dune.pose/1", True, "metric", "pnp")
    assert tree["query"]["image"].endswith("query.png") and tree["reference"]["focal_source"] == "given"
    np.testing.assert_allclose(tree["query"]["K"], K)
    pose = np.array(tree["ref_from_query"])
    np.testing.assert_allclose(pose, MOVED, atol=0.01)
    np.testing.assert_allclose(poses.inverse(pose), tree["query_from_ref"], atol=1e-9)
    np.testing.assert_allclose(tree["translation"], pose[:3, 3])
    assert tree["distance"] == pytest.approx(np.linalg.norm(pose[:3, 3]))
    assert tree["rotation_deg"] == pytest.approx(np.degrees(poses.rotation_angle(pose)))
    assert 0 < tree["inliers"] <= tree["matches"] and 0.15 < tree["confidence"] < 1 and tree["message"] == ""
    inputs = [Path(entry["path"]).name for entry in tree["provenance"]["inputs"]]
    assert inputs == ["query.png", "reference.png", "reference_depth.png"]
    assert tree["provenance"]["models"][0]["name"] == "OpenCV SIFT" and tree["provenance"]["units"] == "metre"
    halved = as_json(*words, "--depth-scale", 2000)
    np.testing.assert_allclose(halved["translation"], np.array(tree["translation"]) / 2, atol=1e-3)
    essential = as_json(*words, "--solver", "essential")
    assert (essential["solver"], essential["scale"]) == ("essential", "metric")
    np.testing.assert_allclose(essential["ref_from_query"], MOVED, atol=0.01)


def test_words_for_people(folder: Path, tmp_path: Path) -> None:
    metric = run(folder / "query.png", folder / "reference.png", *SIFT, "--baseline", 0.41, "-o", tmp_path / "p.json")
    assert metric.exit_code == 0
    lines = metric.stdout.splitlines()
    assert lines[0] == "query.png relative to reference.png" and lines[-1] == str(tmp_path / "p.json")
    for line, words in zip(
        lines[1:], ("4.2", "m: the query camera", "0.410 m", "(essential)", "0.9", "metric, from --baseline")
    ):
        assert words in line
    direction = run(folder / "query.png", folder / "reference.png", *SIFT)
    assert (
        "distance     unknown" in direction.stdout
        and "scale        arbitrary: the scale of two photos is" in direction.stdout
    )


def test_without_lengths_the_json_says_why(folder: Path) -> None:
    tree = as_json(folder / "query.png", folder / "reference.png", *SIFT)
    assert (tree["scale"], tree["distance"], tree["provenance"]["units"]) == ("arbitrary", pytest.approx(1), "baseline")
    assert "--ref-depth" in tree["scale_note"]
    assert set(tree) == {*KEYS, "scale_note"}


def test_several_references(folder: Path) -> None:
    names = [folder / f"{name}.png" for name in ("elsewhere", "reference", "near")]
    depths = [word for path in names for word in ("--ref-depth", path.with_name(f"{path.stem}_depth.png"))]
    tree = as_json(folder / "query.png", *names, *depths, *SIFT)
    assert [Path(c["reference"]["image"]).stem for c in tree["candidates"]] == ["elsewhere", "reference", "near"]
    assert [c["success"] for c in tree["candidates"]] == [False, True, True]
    assert Path(tree["reference"]["image"]).stem == "near"
    assert all(set(candidate) == set(KEYS) - {"schema", "provenance"} for candidate in tree["candidates"])
    shown = run(folder / "query.png", *names, *depths, *SIFT)
    assert shown.stdout.count("relative to") == 3 and shown.stdout.splitlines()[-1].startswith("best: near.png")
    none = run(folder / "query.png", names[0], folder / "elsewhere.png", *SIFT)
    assert none.exit_code == 1 and "none of 2 references: " in none.stderr and none.stdout.count("no pose") == 2


@pytest.mark.parametrize(
    "name, more, words",
    [
        ("elsewhere", (), "do not show enough of the same place"),
        ("query", (), "are the same photo"),
    ],
)
def test_a_failure_is_told_everywhere(
    folder: Path, tmp_path: Path, name: str, more: tuple[str, ...], words: str
) -> None:
    target = tmp_path / "pose.json"
    tree = as_json(folder / "query.png", folder / f"{name}.png", *SIFT, *more, "-o", target, exit_code=1)
    assert json.loads(target.read_text()) == tree
    assert list(tree) == KEYS and tree["success"] is False and words in tree["message"]
    assert [tree[key] for key in ("ref_from_query", "query_from_ref", "rotation_deg", "translation", "distance")] == [
        None
    ] * 5
    refused(run(folder / "query.png", folder / f"{name}.png", *SIFT, *more), 1, words)


def test_a_turn_on_the_spot(folder: Path) -> None:
    words = (folder / "turned.png", folder / "reference.png", *SIFT)
    refused(run(*words), 1, "by a rotation alone, of 6.9 degrees")
    found = as_json(*words, "--ref-depth", folder / "reference_depth.png")
    assert found["distance"] < 0.01 and found["rotation_deg"] == pytest.approx(6.9, abs=0.1)


def test_the_threshold_can_be_chosen(folder: Path) -> None:
    words = (folder / "query.png", folder / "reference.png", *SIFT)
    refused(run(*words, "--min-confidence", 1), 1, "confidence")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--solver", "pnp"], "--ref-depth"),
        (["--baseline", "1", "--ref-depth", "reference_depth.png"], "--ref-depth and --baseline"),
        (["--baseline", "1", "--model", "x.pth"], "--model and --baseline"),
        (["--ref-depth", "reference_depth.png", "--ref-depth", "query_depth.png"], "2 depth maps for 1 references"),
        (["--depth-scale", "1000"], "belongs to --ref-depth"),
        (["--ref-depth", "small_depth.png"], "100 x 80 px, but reference.png has 320 x 240"),
        (["--ref-depth", "reference.png"], "16-bit grey PNG"),
        (["--ref-depth", "absent.png"], "absent.png"),
        (["--encoder", "x.pth"], "--encoder belongs to a two-view --model"),
        (["--size", "512"], "--size belongs to a two-view --model"),
        (["--model", "x.pth", "--matcher", "sift"], "leave one out"),
        (["--matcher", "surf"], "unknown matcher 'surf'"),
        (["--intrinsics", "other.json"], "no camera for query.png, reference.png"),
        (["--intrinsics", "1,1,0,0"], "pixels"),
        (["-o", "pose.txt"], "allowed: .json"),
        (["-o", "/proc/pose.json"], "cannot write"),
        (["-o", "old.json"], "--overwrite"),
        (["reference.png", "--baseline", "1"], "--baseline is the distance to one reference"),
    ],
)
def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch, arguments: list[str], words: str) -> None:
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    save_png(tmp_path / "small_depth.png", np.ones((80, 100), np.uint16))
    (tmp_path / "other.json").write_text('{"other.png": [[500, 0, 160], [0, 500, 120], [0, 0, 1]]}')
    (tmp_path / "old.json").write_text("old")
    monkeypatch.chdir(tmp_path)
    references = [word for word in arguments if word == "reference.png" and arguments[0] == word]
    refused(run("query.png", "reference.png", *references, *arguments[len(references) :]), 2, words)
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_query_is_one_photo(folder: Path) -> None:
    refused(run(folder, folder / "reference.png"), 2, "one query photo is needed")


def test_files_that_are_no_two_view_model(folder: Path, tmp_path: Path) -> None:
    human = write_small(tmp_path / "human.pt", ANNY)
    words = (folder / "query.png", folder / "reference.png", "--model")
    refused(run(*words, human), 2, str(human), "not a two-view model", "dune human")
    refused(run(*words, "mast3r-vitl"), 3, "dune weights pull mast3r-vitl")
    refused(run(*words, folder / "query.png"), 2, "query.png")


def test_a_two_view_model_end_to_end(folder: Path, tmp_path: Path) -> None:
    """Made-up weights match nothing: no pose, for a reason, portrait and landscape, with and without a known focal."""
    import torch

    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    portrait = Image.open(folder / "query.png").rotate(90, expand=True)
    portrait.save(tmp_path / "portrait.png")
    words = (tmp_path / "portrait.png", folder / "reference.png", "--model", tmp_path / "mini.pth", "--size", 160)
    for more in ((), ("--fov-deg", "60"), ("--solver", "essential", "--fov-deg", "60")):
        tree = as_json(*words, *more, "--device", "cpu", exit_code=1)
        assert not tree["success"] and tree["scale"] == "metric" and tree["message"]
        assert tree["provenance"]["models"][0]["name"] == "mini.pth"


def test_as_a_process(folder: Path, tmp_path: Path, dune_process: Dune) -> None:
    words = (folder / "query.png", folder / "reference.png", *SIFT, "--ref-depth", folder / "reference_depth.png")
    done = dune_process("reloc", *words, "--quiet", "-o", tmp_path / "pose.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "pose.json")
    failed = dune_process("reloc", folder / "query.png", folder / "elsewhere.png", *SIFT, "--json", "--quiet")
    assert failed.returncode == 1 and json.loads(failed.stdout)["success"] is False
    assert len(failed.stderr.splitlines()) == 1 and failed.stderr.startswith("dune: query.png and elsewhere.png")
