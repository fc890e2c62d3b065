"""`dune depth` and `dune human` on videos: frames, times, identities, cut files, sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from PIL import Image

from dune_cli.cli import main
from dune_cli.io.rendering import distinct_color
from dune_cli.io.video import frames
from dune_cli.provenance import sha256_of
from support.dinov2_head_files import write_encoder, write_head
from support.human_files import ANNY, write_placed
from support.published_files import Fixture, mast3r_tree
from support.video_files import cut, grey_frames, index_first, panned, turned, write_video

Dune = Callable[..., CompletedProcess[str]]
SIDE, CELL, DEPTH, FOCAL = 224, 14, 3.0, 300.0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    write_encoder(folder, "dinov2_vits14_pretrain", 384, 12, side=5)
    return write_head(folder, "dinov2_vits14_nyu_linear_head", 384, "linear", "nyu")


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees a resting person, 3 m away with the focal length FOCAL, wherever a cell of 14 px is bright."""
    folder = tmp_path_factory.mktemp("human")
    return write_placed(folder / "placed.pt", ANNY, float(np.log(FOCAL / DEPTH)), SIDE // CELL)


def cells(*bright: tuple[int, int]) -> np.ndarray:
    """A black frame with bright cells (row, column)."""
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    for row, column in bright:
        frame[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = 255
    return frame


def good(*arguments: object) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    return result.stdout


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "video.json").read_text())


# ---- depth ----


def test_depth_of_every_frame_is_that_of_the_frame_as_a_photo(head: Path, tmp_path: Path, dune: Dune) -> None:
    clip = write_video(tmp_path / "clip.avi", panned("coffee.png", 6), 10)
    out = tmp_path / "out"
    exact = ("--model", head, "--format", "npz", "--fov-deg", 60, "--device", "cpu", "--dtype", "float32")
    done = dune("depth", clip, "-o", out, "--fps", 5, *exact)
    assert done.returncode == 0, done.stderr
    names = ["000000.npz", "000002.npz", "000004.npz"]
    assert done.stdout.splitlines() == [str(out / name) for name in names]
    assert done.stderr.splitlines()[1:] == [f"clip.avi: 3 frames of 0.60 s; {out / 'frames.jsonl'}"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "frames.jsonl", "video.json"]
    lines, whole = lines_of(out), summary_of(out)
    assert [line["frame"] for line in lines] == [{"index": k, "time_s": k / 10} for k in (0, 2, 4)]
    assert [line["file"] for line in lines] == names
    assert {line["schema"] for line in lines} == {"dune.depth/1"}
    assert (whole["schema"], whole["task"], whole["fps"], whole["frames"]["count"]) == ("dune.video/1", "depth", 5, 3)
    assert whole["video"]["complete"] is True
    assert (whole["video"]["frames"], whole["video"]["rate_hz"], whole["video"]["end_s"]) == (6, 10, 0.6)
    assert whole["provenance"]["inputs"] == [{"path": str(clip), "sha256": sha256_of(clip)}]
    assert whole["provenance"]["models"][0]["name"] == "dinov2-vits14-nyu-linear"

    third = list(frames(clip))[4]
    Image.fromarray(third.rgb).save(tmp_path / "third.png")
    good("depth", tmp_path / "third.png", "-o", tmp_path / "third.npz", "--model", head, "--fov-deg", 60)
    with np.load(out / "000004.npz") as of_frame, np.load(tmp_path / "third.npz") as of_photo:
        assert np.array_equal(of_frame["depth"], of_photo["depth"])
        assert np.array_equal(of_frame["K"], of_photo["K"])


def test_videos_and_photos_together(head: Path, tmp_path: Path, example_photos: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    turned(write_video(folder / "upright.mp4", panned("coffee.png", 2)))
    with Image.open(example_photos / "coffee.png") as image:
        image.resize((120, 80)).save(folder / "still.png")
    documents = json.loads(good("depth", folder, "-o", out, "--model", head, "--colormap", "--json"))
    assert [document["schema"] for document in documents] == ["dune.depth/1", "dune.video/1"]
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    frame_names = ["000000.png", "000000_color.png", "000001.png", "000001_color.png", "frames.jsonl", "video.json"]
    assert found == ["still.json", "still.png", "still_color.png", *(f"upright/{name}" for name in frame_names)]
    with Image.open(out / "upright" / "000001.png") as picture:
        assert picture.size == (84, 112)
    assert documents[1]["video"]["height"] == 112


def test_the_frames_of_a_two_view_model_have_one_camera(tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "two_view.pth")
    clip = write_video(tmp_path / "clip.mp4", panned("coffee.png", 3))
    out = tmp_path / "out"
    good("depth", clip, "-o", out, "--model", tmp_path / "two_view.pth", "--size", 96, "--format", "ply")
    lines = lines_of(out)
    known = [line["K"] for line in lines if line["focal_source"] == "estimated"]
    assert all(known[0] == K for K in known)
    assert [line["focal_source"] for line in lines] == ["default"] * (3 - len(known)) + ["estimated"] * len(known)
    assert all(line["points"]["count"] > 0 for line in lines)


def test_a_cut_video_gives_what_was_there(head: Path, tmp_path: Path, dune: Dune) -> None:
    clip = cut(index_first(write_video(tmp_path / "clip.mp4", grey_frames(20))), 0.6)
    out = tmp_path / "out"
    done = dune("depth", clip, "-o", out, "--model", head, "--fps", 4, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == summary_of(out)
    assert facts["video"]["complete"] is False
    end_s, count = facts["video"]["end_s"], facts["frames"]["count"]
    assert 0.3 < end_s < 1.8
    assert count == len(lines_of(out)) == len(list(out.glob("*.png"))) > 1
    assert f"clip.mp4 is cut off or damaged: it ends at {end_s:.2f} s of 2.00 s" in done.stderr


# ---- people ----


def test_people_keep_their_identities(placed: Path, tmp_path: Path) -> None:
    """At 5 Hz: A walks right and is hidden for 0.8 s; B walks left, passes A, is gone for 1.4 s and comes back."""
    a = {k: (3, 3 + k // 2) for k in range(14) if k not in (5, 6, 7)}
    b = {k: (5, 9 - k // 2) for k in range(14) if not 4 <= k <= 9}
    clip = write_video(tmp_path / "clip.avi", [cells(*(p[k] for p in (a, b) if k in p)) for k in range(14)], 5)
    out, over = tmp_path / "out", tmp_path / "over"
    printed = good(
        *("human", clip, "-o", out, "--overlay", over, "--model", placed, "--format", "ply"),
        *("--intrinsics", f"{FOCAL},{FOCAL},111.5,111.5", "--min-score", 0.5),
    )
    assert printed.splitlines()[:3] == [str(out / "000000.ply"), str(over / "000000.png"), str(out / "000001.ply")]
    lines = lines_of(out)
    for k, line in enumerate(lines):
        assert line["frame"] == {"index": k, "time_s": pytest.approx(k / 5)}
        expected = ([1] if k in a else []) + ([0 if k < 4 else 2] if k in b else [])  # B begins nearer to the camera
        assert sorted(person["id"] for person in line["people"]) == sorted(expected)
        for person in line["people"]:
            row, column = (a if person["id"] == 1 else b)[k]
            assert np.allclose(person["head_px"], [CELL * (column + 0.5) - 0.5, CELL * (row + 0.5) - 0.5], atol=1e-2)
            assert person["head"][2] == pytest.approx(DEPTH, abs=1e-3)
            assert person["mesh"] == f"{k:06d}.ply#person_{person['id']:03d}"
    whole = summary_of(out)
    assert whole["people"] == [
        {"id": 0, "first_frame": 0, "last_frame": 3, "frames": 4},
        {"id": 1, "first_frame": 0, "last_frame": 13, "frames": 11},
        {"id": 2, "first_frame": 10, "last_frame": 13, "frames": 4},
    ]
    assert whole["camera"]["source"] == "given"
    assert whole["body_model"]["name"] == "anny"
    assert len(list(out.glob("*.ply"))) == len(list(over.glob("*.png"))) == 14

    colours = np.asarray(trimesh.load(out / "000012.ply", process=False).visual.vertex_colors)[:, :3]
    assert {tuple(colour) for colour in np.unique(colours, axis=0)} == {distinct_color(1), distinct_color(2)}
    shown = np.asarray(Image.open(over / "000012.png")).astype(int)
    column = CELL * b[12][1] + 3
    chest = shown[CELL * 7 : CELL * 9, column]
    assert (np.argmax(chest, 1) == 1).mean() > 0.8  # the third colour is a green


def test_a_predicted_camera_is_the_first_one_with_people(placed: Path, tmp_path: Path) -> None:
    moving = [cells(), cells((4, 5)), cells((4, 6))]
    clip, out = write_video(tmp_path / "clip.avi", moving), tmp_path / "out"
    arguments = ("human", clip, "-o", out, "--model", placed, "--min-score", 0.5, "--format", "glb")
    good(*arguments)
    lines = lines_of(out)
    assert [len(line["people"]) for line in lines] == [0, 1, 1]
    assert {line["camera"]["source"] for line in lines} == {"predicted"}
    assert lines[1]["camera"] == lines[2]["camera"] == summary_of(out)["camera"]
    assert [person["id"] for line in lines for person in line["people"]] == [0, 0]
    chosen = good(*arguments, "--select", "largest", "--overwrite", "--fps", 5, "--json")
    assert json.loads(chosen)["people"] == [{"id": 0, "first_frame": 2, "last_frame": 2, "frames": 1}]


# ---- what goes wrong ----


def _text(path: Path) -> Path:
    path.write_text("not a video\n" * 100)
    return path


def _used(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    return folder


WRONG: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "no video": (lambda d: [_text(d / "a.mp4"), "-o", d / "out"], r"a\.mp4 cannot be read as a video"),
    "cut before its index": (
        lambda d: [cut(write_video(d / "a.mp4", grey_frames(20)), 0.5), "-o", d / "out"],
        r"a\.mp4 has no whole index",
    ),
    "no frames": (lambda d: [write_video(d / "a.avi", []), "-o", d / "out"], "holds no frame that can be decoded"),
    "one file for many frames": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", d / "out.png"],
        r"the frames of a\.avi do not fit into one file .*out\.png; name a folder",
    ),
    "a folder in use": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", _used(d / "used")],
        "used exists already; add --overwrite",
    ),
    "a file as the folder": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", _text(d / "file")],
        "file is a file; name another folder",
    ),
    "below a file": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", _text(d / "file") / "out"],
        "cannot write",
    ),
    "read-only": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", "/proc/out"],
        "cannot write /proc/out",
    ),
    "no frames a second": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", d / "out", "--fps", 0],
        "--fps.*0 is not in the range",
    ),
    "fps of a photo": (
        lambda d: [Path(__file__).parents[2] / "examples/photos/coffee.png", "-o", d / "out", "--fps", 3],
        "no video was named",
    ),
    "cameras for more": (
        lambda d: [write_video(d / "a.avi", grey_frames(2)), "-o", d / "out", "--intrinsics", "90,90,9,9;90,90,9,9"],
        "2 cameras for 1 images",
    ),
}


@pytest.mark.parametrize("verb", ["depth", "human"])
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_before_the_weights_are_read(case: str, verb: str, dune: Dune, tmp_path: Path) -> None:
    make, message = WRONG[case]
    arguments = make(tmp_path)
    weights = tmp_path / "weights.pth"
    weights.write_text("not weights")
    before = sorted(tmp_path.rglob("*"))
    done = dune(verb, *arguments, "--model", weights)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert sorted(tmp_path.rglob("*")) == before


def test_people_of_a_video_need_a_folder(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.avi", grey_frames(2))
    for more in (["--json"], ["--overlay", tmp_path / "over"]):
        result = CliRunner().invoke(main, ["human", str(clip), *map(str, more)])
        assert result.exit_code == 2
        assert "go into a folder of files; name it with -o" in result.stderr


def test_other_verbs_say_who_reads_videos(tmp_path: Path, dune: Dune) -> None:
    clip = write_video(tmp_path / "a.avi", grey_frames(2))
    done = dune("encode", clip, "-o", tmp_path / "a.npz", "--model", "absent.pth")
    assert done.returncode == 2
    verbs = "dune depth, dune human, dune index, dune reconstruct and dune reloc --map"
    assert f"is a video, and only {verbs} read those" in done.stderr
