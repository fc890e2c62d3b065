"""Map-free scores: the official ones of the parity fixture, and by hand the rules that it does not hold.

docs/models/relocalization.md, "Official scores".
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.evaluation import mapfree

IDENTITY = "1 0 0 0 0 0 0"


def test_scores_of_the_fixture(parity: Path) -> None:
    folder = parity / "mapfree_val"
    expected = json.loads((folder / "expected.json").read_text())
    scores = mapfree.score(folder / "val", folder / "submission.zip")
    assert list(scores) == list(expected)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name


def make_split(tmp_path: Path, names: list[str], size: str = "540 720") -> Path:
    scene = tmp_path / "val" / "s00000"
    scene.mkdir(parents=True)
    (scene / "poses.txt").write_text("\n".join(f"{name} {IDENTITY}" for name in names) + "\n")
    (scene / "intrinsics.txt").write_text("\n".join(f"{name} 590 590 269.5 359.5 {size}" for name in names) + "\n")
    return scene.parent


def make_zip(path: Path, lines: list[str], member: str = "pose_s00000.txt") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "\n".join(lines) + "\n")
    return path


def frame(number: int, sequence: int = 1) -> str:
    return f"seq{sequence}/frame_{number:05d}.jpg"


def test_every_fifth_entry_in_file_order_and_the_later_line_wins(tmp_path: Path) -> None:
    # seq0/frame_00000 and seq1/frame_00000 share the key 0; frame 7 stands at place 5, so it is kept
    names = [frame(0, 0), frame(0), *map(frame, (3, 2, 4, 6, 7, 8))]
    split = make_split(tmp_path, names)
    (split / "s00000" / "poses.txt").write_text(
        f"{names[0]} 1 0 0 0 9 9 9\n" + "".join(f"{name} {IDENTITY}\n" for name in names[1:])
    )
    lines = [f"{frame(n)} {IDENTITY} 1" for n in (0, 7, 3)]
    scores = mapfree.score(split, make_zip(tmp_path / "s.zip", lines))
    assert scores["Average Median Translation Error"] == 0  # the second line of key 0 replaced (9, 9, 9)
    assert scores["Estimates for % of frames"] == 1.0  # frames 0 and 7; frame 3 is no fifth entry


@pytest.mark.parametrize(
    "line",
    [
        f"{frame(5)} nan 0 0 0 0 0 0 1",
        f"{frame(5)} 1 0 0 0 inf 0 0 1",
        f"{frame(5)} {IDENTITY}",  # no confidence
        f"{frame(5)}  {IDENTITY} 1",  # two spaces
        f"{frame(5)} one 0 0 0 0 0 0 1",
        f"{frame(5)} 1e-9 0 0 0 0 0 0 1",
        f"seq1/frame.jpg {IDENTITY} 1",
        f"# {frame(5)} {IDENTITY} 1",
    ],
)
def test_malformed_lines_are_skipped(tmp_path: Path, line: str) -> None:
    split = make_split(tmp_path, [frame(n) for n in range(10)])
    good = f"{frame(0)} {IDENTITY} 1"
    scores = mapfree.score(split, make_zip(tmp_path / "s.zip", [line, good]))
    assert scores["Estimates for % of frames"] == 0.5


def test_negative_confidence_stops(tmp_path: Path) -> None:
    split = make_split(tmp_path, [frame(0)])
    with pytest.raises(UserError, match="negative"):
        mapfree.score(split, make_zip(tmp_path / "s.zip", [f"{frame(0)} {IDENTITY} -1"]))


def test_absent_scene_counts_all_its_poses(tmp_path: Path) -> None:
    split = make_split(tmp_path, [frame(n) for n in range(10)])
    other = split / "s00001"
    other.mkdir()
    for name in ("poses.txt", "intrinsics.txt"):
        (other / name).write_text((split / "s00000" / name).read_text())
    submission = make_zip(tmp_path / "s.zip", [f"{frame(n)} {IDENTITY} 1" for n in (0, 5)])
    assert mapfree.score(split, submission)["Estimates for % of frames"] == pytest.approx(2 / 12)
    empty = make_zip(tmp_path / "e.zip", ["#"])
    with zipfile.ZipFile(empty, "a") as archive:  # present but without lines: the fifth entries only
        archive.writestr("pose_s00001.txt", f"{frame(0)} {IDENTITY} 1\n")
    assert mapfree.score(split, empty)["Estimates for % of frames"] == pytest.approx(1 / 4)


def test_equal_confidences_enter_together_and_recall_is_float32() -> None:
    correct = np.array([True, False, True])
    auc = mapfree.average_precision(correct, np.array([2.0, 2.0, 1.0]), failures=7)
    recall = [float(np.float32(0.2)), float(np.float32(0.3))]
    assert auc == recall[0] * 0.5 + (recall[1] - recall[0]) * (2 / 3)
    assert auc != 0.2 * 0.5 + (0.3 - 0.2) * (2 / 3)


def test_thresholds_are_strict_and_image_size_is_the_last_lines(tmp_path: Path) -> None:
    split = make_split(tmp_path, [frame(0)])
    at_limit = make_zip(tmp_path / "a.zip", [f"{frame(0)} 1 0 0 0 0.25 0 0 1"])
    assert mapfree.score(split, at_limit)["Precision @ Pose Error < (25.0cm, 5deg)"] == 0
    below = make_zip(tmp_path / "b.zip", [f"{frame(0)} 1 0 0 0 0.2499 0 0 1"])
    scores = mapfree.score(split, below)
    assert scores["Precision @ Pose Error < (25.0cm, 5deg)"] == 1
    with (split / "s00000" / "intrinsics.txt").open("a") as file:
        file.write(f"{frame(1)} 590 590 269.5 359.5 1 1\n")
    assert mapfree.score(split, below)["Average Median Reprojection Error"] < 0.1  # all clamped into one pixel


def test_points_behind_the_camera_are_clamped_not_dropped() -> None:
    K = np.array([[590.0, 0, 269.5], [0, 590.0, 359.5], [0, 0, 1]])
    truth = mapfree.FramePose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    ahead = mapfree.FramePose(np.array([1.0, 0, 0, 0]), np.array([0.0, 0, 100]))
    points = mapfree.virtual_points()
    assert points.shape == (196, 3)

    def clamped(p: np.ndarray) -> np.ndarray:
        return np.clip(p[:, :2] / p[:, 2:] * 590 + [269.5, 359.5], 0, [540, 720])

    expected = np.linalg.norm(clamped(points) - clamped(points - [0, 0, 100]), axis=1).mean()
    assert mapfree.vcre_px(ahead, truth, K, 540, 720) == pytest.approx(expected, abs=1e-12)


def test_float32_intrinsics() -> None:
    intrinsics, width, height = mapfree.read_intrinsics([f"{frame(0)} 590.1 590.1 269.5 359.5 540 720"], "here")
    assert intrinsics[0].K[0, 0] == float(np.float32(590.1)) != 590.1
    assert (width, height) == (540, 720)


@pytest.mark.parametrize("member", ["../pose_s00000.txt", "/pose_s00000.txt"])
def test_traversal_names_are_refused(tmp_path: Path, member: str) -> None:
    split = make_split(tmp_path, [frame(0)])
    with pytest.raises(UserError, match="points out of the archive"):
        mapfree.score(split, make_zip(tmp_path / "s.zip", [f"{frame(0)} {IDENTITY} 1"], member))


def test_not_a_zip(tmp_path: Path) -> None:
    split = make_split(tmp_path, [frame(0)])
    (tmp_path / "s.zip").write_text("hello")
    with pytest.raises(UserError, match="submission ZIP"):
        mapfree.score(split, tmp_path / "s.zip")
