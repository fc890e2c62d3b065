"""`dune reloc --map` as its users meet it: JSON lines, exit codes, retrieval, and what is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dune_cli.cli import main
from dune_cli.geometry import poses
from dune_cli.matchers import mast3r
from dune_cli.tasks import reloc as map_task
from support import synthetic_maps
from support.published_files import Fixture, dune_manifest, make_state_dict, mast3r_tree
from support.video_files import write_video

Dune = Callable[..., CompletedProcess[str]]
SIFT = ("--matcher", "sift", "--fov-deg", "60")
KEYS = [
    *("schema", "success", "scale", "scale_note", "query", "map", "world_from_query", "query_from_world", "position"),
    *("rotation_std_deg", "position_std", "covariance", "covariance_has_map_calibration", "matches"),
    *("inliers", "fixed", "turned_deg", "confidence"),
    "reprojection_error_px",
    *("retrieved", "solver", "message", "provenance"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map in map/ with its photos in map/images, queries beside it; what is computed is kept between the tests."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "map").mkdir()
    synthetic_maps.write_photos(folder / "map")
    synthetic_maps.write_model(folder / "map")
    for name in ("query.png", "elsewhere.png"):
        (folder / "map" / name).rename(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(autouse=True)
def _quick_sift(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the photos' own size."""
    from dune_cli.matchers import sift

    monkeypatch.setattr(sift, "build", lambda *_: sift.Sift(synthetic_maps.WIDTH, 1500))


def run(place: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["reloc", "--map", str(place / "map"), *map(str, arguments)])


def refused(result: Result, exit_code: int, *words: str) -> None:
    """One sentence that holds `words`, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("dune: ")]
    assert len(lines) == 1 and "unexpected" not in lines[0], result.stderr
    for word in words:
        assert word in lines[0]


def test_one_query(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "pose.json"
    result = run(place, place / "query.png", *SIFT, "--json", "-o", target)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert json.loads(target.read_text()) == tree and list(tree) == KEYS
    assert (tree["schema"], tree["success"], tree["scale"], tree["solver"]) == ("dune.pose/1", True, "arbitrary", "pnp")
    np.testing.assert_allclose(tree["world_from_query"], synthetic_maps.QUERY, atol=0.02)
    np.testing.assert_allclose(poses.inverse(np.array(tree["world_from_query"])), tree["query_from_world"], atol=1e-9)
    np.testing.assert_allclose(tree["position"], np.array(tree["world_from_query"])[:3, 3])
    covariance = np.array(tree["covariance"])
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)[3:]), tree["position_std"])
    np.testing.assert_allclose(np.degrees(np.sqrt(np.trace(covariance[:3, :3]))), tree["rotation_std_deg"])
    assert [seen["image"] for seen in tree["retrieved"]] == list(synthetic_maps.POSES)
    assert all(seen["likeness"] is None for seen in tree["retrieved"])  # of a small map all photos are taken
    assert tree["map"] == {"folder": str(place / "map"), "images": 4} and "--scale metric" in tree["scale_note"]
    inputs = [Path(entry["path"]).name for entry in tree["provenance"]["inputs"]]
    assert inputs == ["query.png", "cameras.bin", "images.bin", "points3D.bin"]
    assert [model["name"] for model in tree["provenance"]["models"]] == ["OpenCV SIFT"]
    assert any((place / "map" / "dune-work").iterdir())
    again = run(place, place / "query.png", *SIFT, "-o", target)
    refused(again, 2, "--overwrite")


def test_many_queries_a_line_each(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "poses.jsonl"
    names = ("query.png", "elsewhere.png", "broken.png")
    queries = [place / name for name in names]
    result = run(place, *queries, *SIFT, "--scale", "metric", "-o", target)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [Path(line["query"]["image"]).name for line in lines] == list(names)
    assert [line["success"] for line in lines] == [True, False, False]
    assert all(set(line) == set(KEYS) - {"scale_note"} and line["scale"] == "metric" for line in lines)
    assert "does not show enough of" in lines[1]["message"] and "is not a picture" in lines[2]["message"]
    assert lines[1]["world_from_query"] is None and lines[2]["query"]["K"] is None
    said = result.stdout.splitlines()
    assert len(said) == 4 and said[-1] == str(target)
    assert " m +- " in said[0] and "no pose: " in said[1] and "no pose: " in said[2]
    # the same lines on standard output, whoever reads them
    shown = run(place, *queries, *SIFT, "--json")
    told = [json.loads(line) for line in shown.stdout.splitlines()]
    np.testing.assert_array_equal(told[0]["covariance"], lines[0]["covariance"])


def test_a_stopped_run_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("query.png", "elsewhere.png", "broken.png")
    words = [*(place / name for name in names), *SIFT, "-o", tmp_path / "poses.jsonl"]
    target, marker = tmp_path / "poses.jsonl", tmp_path / "poses.jsonl.run"
    whole = run(place, *words)
    assert whole.exit_code == 0 and not marker.exists()
    lines = [without_seconds(line) for line in target.read_text().splitlines()]
    refused(run(place, *words), 2, "exists already")
    make = map_task.map_document

    def stopped(*arguments: Any) -> Any:
        if len(target.read_text().splitlines()) == 2:
            raise KeyboardInterrupt
        return make(*arguments)

    monkeypatch.setattr(map_task, "map_document", stopped)
    assert run(place, *words, "--overwrite").exit_code != 0
    monkeypatch.setattr(map_task, "map_document", make)
    assert marker.exists() and len(target.read_text().splitlines()) == 2
    with target.open("a") as file:
        file.write('{"schema": "dune.po')  # cut off by a kill
    refused(run(place, *words, "--seed", 1), 2, "unfinished run with other settings (landmarks, localization)")
    rest = run(place, *words)
    assert rest.exit_code == 0 and "2 of 3 queries are in " in rest.stderr and "query.png" not in rest.stdout
    assert [without_seconds(line) for line in target.read_text().splitlines()] == lines and not marker.exists()


def without_seconds(line: str) -> dict[str, Any]:
    tree = json.loads(line)
    assert tree["provenance"].pop("seconds")["locate"] >= 0
    return tree


def test_the_frames_of_a_video_are_queries(place: Path, tmp_path: Path) -> None:
    still = np.asarray(Image.open(place / "query.png").convert("RGB"))
    other = np.asarray(Image.open(place / "map" / "images" / "c.png").convert("RGB"))
    clip = write_video(tmp_path / "walk.avi", [still, still, still, other])
    words = (clip, "--fps", 10, "--matcher", "sift", "--work", tmp_path / "work")
    result = run(place, *words, "-o", tmp_path / "poses.jsonl")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [line["sequence"] for line in lines] == [
        {"video": str(clip), "frame": frame, "consistent": frame < 3} for frame in range(4)
    ]
    np.testing.assert_allclose(lines[1]["world_from_query"], synthetic_maps.QUERY, atol=0.03)
    assert "1 of 4 poses are far from the motion of the frames beside them" in result.stderr
    assert result.stdout.count("far from the motion") == 1
    refused(run(place, *words, "-o", tmp_path / "pose.json"), 2, "the frames of walk.avi do not fit into")
    refused(run(place, place / "query.png", "--fps", 2), 2, "no video was named")


def test_the_photos_of_a_folder_are_frames(place: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for step in range(4):  # the camera stands still, and is elsewhere in the last frame
        source = place / "query.png" if step < 3 else place / "map" / "images" / "c.png"
        shutil.copy(source, tmp_path / "clip" / f"{step}.png")
    result = run(place, tmp_path / "clip", place / "query.png", *SIFT, "--sequence", "-o", tmp_path / "poses.jsonl")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    frames = [{"video": str(tmp_path / "clip"), "frame": step, "consistent": step < 3} for step in range(4)]
    assert [line["sequence"] for line in lines] == [*frames, {"video": str(place), "frame": 0, "consistent": None}]
    # all photos of this small map, then those that localized the frames before
    assert [len(line["retrieved"]) for line in lines] == [4, 3, 3, 3, 4]


def test_none_found(place: Path, tmp_path: Path) -> None:
    refused(run(place, place / "elsewhere.png", *SIFT), 1, "elsewhere.png does not show enough of")
    refused(run(place, place / "broken.png", *SIFT), 1, "broken.png is not a picture")
    target = tmp_path / "poses.jsonl"
    result = run(place, place / "elsewhere.png", place / "broken.png", *SIFT, "-o", target)
    assert result.exit_code == 1 and "none of 2 queries was localized; the last: " in result.stderr
    assert len(target.read_text().splitlines()) == 2
    refused(run(place, place / "query.png", *SIFT, "--min-confidence", 1), 1, "confidence")


def test_a_camera_a_query(place: Path, tmp_path: Path) -> None:
    K = synthetic_maps.K
    good = f"{K[0, 0]},{K[1, 1]},{K[0, 2]},{K[1, 2]}"
    two = run(
        place, place / "query.png", place / "elsewhere.png", "--matcher", "sift", "--intrinsics", f"{good};{good}"
    )
    assert two.exit_code == 0, two.output
    one_more = run(place, place / "query.png", "--matcher", "sift", "--intrinsics", f"{good};{good}")
    refused(one_more, 2, "2 cameras for 1 images")
    of_map = run(place, place / "query.png", "--matcher", "sift", "--json")
    told = json.loads(of_map.stdout)
    assert told["query"]["focal_source"] == "map" and "their camera is taken (PINHOLE)" in of_map.stderr
    assert told["query"]["K"][0][0] == pytest.approx(K[0, 0])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "small.pth"
    torch.save({"model": make_state_dict(dune_manifest(64, 2, 6, {"one": 48}), 4)}, path)
    return path


def test_retrieval_chooses_the_photos(place: Path, encoder: Path) -> None:
    words = (place / "query.png", *SIFT, "--neighbours", 2, "--retrieval-model", encoder, "--json", "--device", "cpu")
    first, second = (json.loads(run(place, *words).stdout) for _ in range(2))
    likeness = [seen["likeness"] for seen in first["retrieved"]]
    assert len(likeness) == 2 and likeness == sorted(likeness, reverse=True) and max(likeness) <= 1
    assert first["success"] and first["retrieved"] == second["retrieved"]
    assert [model["name"] for model in first["provenance"]["models"]] == ["OpenCV SIFT", "small.pth"]
    assert len(list((place / "map" / "dune-work" / "descriptors").rglob("*.safetensors"))) == 4
    # a photo of the map is most like itself
    own = json.loads(run(place, place / "map" / "images" / "c.png", *words[1:]).stdout)
    assert own["retrieved"][0]["image"] == "c.png" and own["retrieved"][0]["likeness"] == pytest.approx(1, abs=1e-4)


def test_retrieval_needs_an_encoder(place: Path) -> None:
    result = run(place, place / "query.png", *SIFT, "--neighbours", 2, "--retrieval-model", "dinov2-vits14")
    refused(result, 3, "the map has 4 photos, and choosing 2 of them takes the encoder dinov2-vits14", "--neighbours 4")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--solver", "pnp"], "--solver applies only without --map"),
        (["--ref-depth", "x.png"], "--ref-depth"),
        (["--baseline", "1"], "--baseline"),
        (["--size", "512"], "--size"),
        (["--encoder", "x.pth"], "--encoder belongs to a two-view --model"),
        (["--model", "x.pth", "--matcher", "sift"], "leave one out"),
        (["--matcher", "surf"], "unknown matcher 'surf'"),
        (["--images", "none"], "--images none is no folder"),
        (["--work", "query.png"], "is a file"),
        (["--intrinsics", "1,1,0,0", "--fov-deg", "60"], "give one of them"),
        (["-o", "pose.txt"], "allowed: .json .jsonl"),
        (["elsewhere.png", "-o", "pose.json"], "2 queries do not fit into pose.json; name a .jsonl file"),
        (["none.png"], "no such file or folder: none.png"),
        (["--map", "elsewhere.png"], "is a file without a scene"),
        (["--map", "."], "holds no map"),
    ],
)
def test_what_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(place)
    refused(run(place, "query.png", *arguments), 2, words)


@pytest.mark.parametrize(
    "option", ["--images", "--scale", "--neighbours", "--retrieval-model", "--work", "--fps", "--workers", "--sequence"]
)
def test_words_of_a_map_without_one(place: Path, option: str) -> None:
    value = {"--scale": "metric", "--neighbours": "3", "--fps": "3", "--workers": "3"}.get(option, "x")
    words = [option] if option == "--sequence" else [option, value]
    result = CliRunner().invoke(main, ["reloc", str(place / "query.png"), str(place / "elsewhere.png"), *words])
    refused(result, 2, f"{option} belongs to --map")
    alone = CliRunner().invoke(main, ["reloc", str(place / "query.png")])
    assert alone.exit_code == 2 and "--map DIR" in alone.stderr


def test_a_broken_map(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "map", tmp_path / "map", ignore=shutil.ignore_patterns("dune-work"))
    (tmp_path / "map" / "images" / "d.png").write_bytes(b"no picture")
    refused(run(tmp_path, place / "query.png", *SIFT), 2, "d.png is not a picture")
    (tmp_path / "map" / "images.bin").write_bytes(b"\x01")
    refused(run(tmp_path, place / "query.png", *SIFT), 2, "is broken")


def test_a_two_view_model_matches(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up weights match nothing: no pose, for a reason."""
    monkeypatch.setattr(mast3r, "Mast3r", partial(mast3r.Mast3r, size_px=96))
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "mini.pth")
    words = ("--model", tmp_path / "mini.pth", "--fov-deg", 60, "--device", "cpu", "--json")
    result = run(place, place / "query.png", *words, "--work", tmp_path / "work")
    assert result.exit_code == 1, result.output
    tree = json.loads(result.stdout)
    assert not tree["success"] and tree["message"] and tree["provenance"]["models"][0]["name"] == "mini.pth"


def test_several_references_give_one_pose(place: Path, tmp_path: Path) -> None:
    images = place / "map" / "images"
    arguments = ["reloc", place / "query.png", images / "a.png", images / "b.png", images / "d.png", *SIFT]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert len(tree["joint"]["references"]) == 3 and len(tree["candidates"]) == 3
    frame = synthetic_maps.POSES[Path(tree["reference"]["image"]).name]
    truth = poses.inverse(frame) @ synthetic_maps.QUERY
    found = np.array(tree["ref_from_query"])
    assert np.degrees(poses.rotation_angle(truth[:3, :3].T @ found[:3, :3])) < 0.3
    assert np.degrees(poses.vector_angle(truth[:3, 3], found[:3, 3])) < 2
    shown = CliRunner().invoke(main, [*map(str, arguments)])
    assert "by 3 references together" in shown.stdout and shown.stdout.splitlines()[-1].startswith("best: ")


def test_a_file_of_lines_and_a_map_that_is_not_there(place: Path, tmp_path: Path, dune: Dune) -> None:
    target = tmp_path / "poses.jsonl"
    words = (place / "query.png", place / "elsewhere.png", *SIFT, "--work", tmp_path / "work", "-o", target)
    done = dune("reloc", "--map", place / "map", *words, "--quiet")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["success"] for line in lines] == [True, False]
    np.testing.assert_allclose(lines[0]["world_from_query"], synthetic_maps.QUERY, atol=0.02)
    failed = dune("reloc", "--map", tmp_path / "none", place / "query.png")
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
