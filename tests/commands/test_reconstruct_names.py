"""Names of photos in what `dune reconstruct` reads and writes: camera folders with equal names, names that a file
cannot hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from click.testing import CliRunner

from dune_cli.cli import main
from support.many_photos import INTRINSICS, arc, write

pytestmark = pytest.mark.usefixtures("quick_sift")
SIFT = ("--matcher", "sift", "--no-dense")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["reconstruct", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.stderr


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names in two camera folders: places 0 to 2 and 3 to 5, and a work folder in which all is done."""
    root = tmp_path_factory.mktemp("names")
    write(root / "photos" / "cam1", range(3))
    for path in write(root / "later", range(3, 6)):
        other = root / "photos" / "cam2" / f"p{int(path.stem[1:]) - 3}.png"
        other.parent.mkdir(exist_ok=True)
        path.rename(other)
    return root


def test_camera_folders_with_equal_names(cameras: Path, tmp_path: Path) -> None:
    code, err = run(cameras / "photos", "-o", tmp_path / "s.ply", *SIFT)
    assert code == 2 and "its subfolders do: cam1 (3), cam2 (3)" in err
    folders = [cameras / "photos" / name for name in ("cam1", "cam2")]
    poses, K = {}, {}
    for place in range(6):
        name = f"cam{place // 3 + 1}\\p{place % 3}.png"
        poses[name] = arc(place).tolist()
        K[name] = [[300, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]
    (tmp_path / "poses.json").write_text(json.dumps(poses), encoding="utf-8-sig")
    (tmp_path / "K.json").write_text(json.dumps(K), encoding="utf-8-sig")
    pairs = "cam1\\p0.png cam1/p1.png\ncam1/p2.png cam2/p0.png\ncam2/p0.png\tcam2/p1.png\n"
    (tmp_path / "pairs.txt").write_text(pairs, encoding="utf-8-sig")
    more = ("--poses", tmp_path / "poses.json", "--intrinsics", tmp_path / "K.json", "--pairs", tmp_path / "pairs.txt")
    outputs = ("--colmap", tmp_path / "model", "--transforms", tmp_path / "t.json")
    code, err = run(*folders, "-o", tmp_path / "s.ply", "--work", cameras / "work", *SIFT, *more, *outputs)
    assert code == 0, err
    assert "3 pairs" in err and f"relative to {cameras / 'photos'}" in err
    names = [f"cam{c}/p{i}.png" for c in (1, 2) for i in range(3)]
    scene = json.loads((tmp_path / "s.json").read_text())
    assert [camera["image"] for camera in scene["cameras"]] == names
    for place, camera in enumerate(scene["cameras"]):
        np.testing.assert_allclose(camera["world_from_cam"], arc(place), atol=1e-9)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert sorted(image.name for image in model.images.values()) == names
    files = [frame["file_path"] for frame in json.loads((tmp_path / "t.json").read_text())["frames"]]
    assert [(tmp_path / file).resolve() for file in files] == [(cameras / "photos" / name).resolve() for name in names]
    # and back in by these names
    for known in ("model", "t.json", "s.json"):
        code, err = run(
            *folders, "-o", tmp_path / "again.ply", "--work", cameras / "work", *SIFT, "--intrinsics", INTRINSICS,
            "--pairs", tmp_path / "pairs.txt", "--poses", tmp_path / known, "--overwrite",
        )  # fmt: skip
        assert code == 0, err
        again = json.loads((tmp_path / "again.json").read_text())
        for place, camera in enumerate(again["cameras"]):
            np.testing.assert_allclose(camera["world_from_cam"], arc(place), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        (b"a b.png", ("--colmap", "model", "--colmap-format", "text"), "white space"),
        (b"caf\xe9.png", ("--colmap", "model"), "not UTF-8"),
        (b"caf\xe9.png", ("--transforms", "t.json"), "not UTF-8"),
        (b"walk about.mp4", ("--colmap", "model", "--colmap-format", "text"), "'walk about_0.jpg'"),
    ],
)
def test_what_a_file_cannot_hold_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, more: tuple[str, ...], words: str
) -> None:
    for file in (os.fsdecode(name), "b.png", "c.png"):
        (tmp_path / file).write_bytes(b"not even looked at")
    monkeypatch.chdir(tmp_path)
    files = [os.fsdecode(name), "b.png", "c.png"]
    code, err = run(*files, "-o", "s.ply", *SIFT, *more)
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
