"""What users do wrong and what machines run out of: the exit code, one sentence, no half output.

A new verb that reads photos joins by a line in VERBS.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli.io.formats.ply import read_ply
from support.odd_photos import BAD, GOOD
from support.published_files import dune_manifest, make_state_dict

Dune = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("quick_sift")


@dataclass(frozen=True)
class Verb:
    """A verb that reads `photos` photos: its other arguments (MODEL is replaced) and the ending of its output."""

    name: str
    photos: int
    ending: str
    arguments: tuple[str, ...] = ()


VERBS = [
    Verb("reconstruct", 2, ".ply", ("--matcher", "sift")),
    Verb("encode", 1, ".npz", ("--model", "MODEL", "--size", "98")),
    Verb("reloc", 2, ".json", ("--matcher", "sift")),
]


@pytest.fixture(scope="module")
def pair(example_photos: Path) -> list[np.ndarray]:
    """The example stereo pair at two thirds of its size."""
    photos = [Image.open(example_photos / f"motorcycle_{side}.png").convert("RGB") for side in ("left", "right")]
    return [np.asarray(photo.resize((494, 333))) for photo in photos]


@pytest.fixture(scope="module")
def photos(pair: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for side, rgb in zip(("left", "right"), pair):
        Image.fromarray(rgb).save(folder / f"{side}.png")
    return [folder / "left.png", folder / "right.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save({"model": make_state_dict(dune_manifest(64, 1, 4, {"one": 32}), 4)}, path)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def _arguments(verb: Verb, photos: list[Path], target: Path, model: Path | str) -> list[str]:
    options = [str(model) if word == "MODEL" else word for word in verb.arguments]
    return [verb.name, *map(str, photos[: verb.photos]), "-o", str(target), "--quiet", *options]


def _refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """One sentence on stderr that holds `words`, nothing on stdout, and the exit code."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (exit_code, 1, ""), done.stderr
    assert lines[0].startswith("dune: ") and "unexpected" not in lines[0]
    for word in words:
        assert word in lines[0]


def _everything_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# ---- photos ----


@pytest.mark.parametrize("fault", BAD)
def test_reconstruct_refuses_what_is_no_photo(
    fault: str, dune: Dune, photos: list[Path], pair: list[np.ndarray], tmp_path: Path, output: Path
) -> None:
    write, word = BAD[fault]
    bad = write(tmp_path / "cut", pair[1])
    _refused(dune(*_arguments(VERBS[0], [photos[0], bad], output / "scene.ply", "")), 2, str(bad), word)
    assert _everything_below(output) == []


@pytest.mark.parametrize("fault", ["cut JPEG", "empty", "one pixel", "huge"])
def test_encode_refuses_what_is_no_photo(
    fault: str, dune: Dune, pair: list[np.ndarray], model: Path, tmp_path: Path, output: Path
) -> None:
    write, word = BAD[fault]
    bad = write(tmp_path / "cut", pair[0])
    _refused(dune(*_arguments(VERBS[1], [bad], output / "a.npz", model)), 2, str(bad), word)
    assert _everything_below(output) == []


ODD_FORMS = ["CMYK JPEG", "16-bit RGB PNG", "16-bit grey PNG", "grey JPEG", "alpha PNG", "animated GIF", "wrong ending"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ODD_FORMS)
def test_reconstruct_takes_odd_forms(
    form: str, dune: Dune, pair: list[np.ndarray], tmp_path: Path, output: Path
) -> None:
    odd = [GOOD[form](tmp_path / side, rgb) for side, rgb in zip(("left", "right"), pair)]
    done = dune(*_arguments(VERBS[0], odd, output / "scene.ply", ""))
    assert (done.returncode, done.stderr) == (0, "")
    assert _everything_below(output) == ["scene.json", "scene.ply"]
    cloud = read_ply(output / "scene.ply")
    assert len(cloud["x"]) > 0.3 * pair[0].shape[0] * pair[0].shape[1]
    is_grey = "grey" in form
    assert (np.array_equal(cloud["red"], cloud["green"]) and np.array_equal(cloud["red"], cloud["blue"])) == is_grey


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_folders_and_globs_without_images(
    verb: Verb, dune: Dune, photos: list[Path], tmp_path: Path, output: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    for name, word in (
        ("empty", "holds no images"),
        ("empty/*", "only matches what is no image"),
        ("*.jpg", "nothing"),
    ):
        done = dune(*_arguments(verb, [tmp_path / name, *photos], output / f"a{verb.ending}", "absent.pth"))
        _refused(done, 2, word)
    assert _everything_below(output) == []


def test_reconstruct_wants_two_photos(dune: Dune, photos: list[Path], output: Path) -> None:
    _refused(dune("reconstruct", photos[0], "-o", output / "a.ply"), 2, "got 1", "name two or more")
    assert _everything_below(output) == []


@pytest.mark.parametrize(
    ("intrinsics", "word"),
    [
        ("500,500,247", "neither four numbers nor a file"),
        ("absent.json", "neither four numbers nor a file"),
        ("0,0,247,166", "must be positive"),
        ("nan,500,247,166", "not finite"),
        ("1.0,1.0,0.5,0.5", "pixels"),
        ("500,500,247,166;500,500,247,166;500,500,247,166", "3 cameras for 2 images"),
        ("OTHER", "no camera for left.png, right.png"),
        ("BROKEN", "broken.json"),
    ],
)
def test_reconstruct_refuses_wrong_intrinsics(
    intrinsics: str, word: str, dune: Dune, photos: list[Path], tmp_path: Path, output: Path
) -> None:
    (tmp_path / "other.json").write_text('{"other.png": [[500, 0, 247], [0, 500, 166], [0, 0, 1]]}')
    (tmp_path / "broken.json").write_text("{")
    named = {"OTHER": str(tmp_path / "other.json"), "BROKEN": str(tmp_path / "broken.json")}.get(intrinsics, intrinsics)
    done = dune(*_arguments(VERBS[0], photos, output / "a.ply", ""), "--intrinsics", named)
    _refused(done, 2, word)
    _refused(
        dune(*_arguments(VERBS[0], photos, output / "a.ply", ""), "--intrinsics", named, "--fov-deg", "60"),
        2,
        "one of them",
    )
    assert _everything_below(output) == []


# ---- outputs ----


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("a.xyz", "allowed: "),
        ("old", "--overwrite"),
        ("beside", "--overwrite"),
        ("below", "is a file, not a folder"),
        ("/proc/a", "cannot write"),
    ],
)
def test_outputs_are_checked_before_the_work(
    verb: Verb, target: str, word: str, dune: Dune, photos: list[Path], output: Path
) -> None:
    """So early that a missing model, which would be exit code 3, is not even looked for."""
    if target.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("needs Linux's /proc")
    old = output / f"old{verb.ending}"
    old.write_text("old")
    (output / "beside.json").write_text("old")
    if target == "below":
        target = str(old / "a")
    path = output / (target if "." in Path(target).name else target + verb.ending)
    _refused(dune(*_arguments(verb, photos, path, "absent.pth")), 2, word)
    assert _everything_below(output) == ["beside.json", old.name] and old.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB (root may mount one; elsewhere the test skips)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (VERBS[0], ()),
        (Verb("reconstruct", 2, ".glb", ("--matcher", "sift")), ()),
        (Verb("reconstruct", 2, ".npz", ("--matcher", "sift")), ()),
        (Verb("reconstruct", 2, ".obj", ("--matcher", "sift")), ()),
        (Verb("encode", 1, ".npz", ("--model", "MODEL", "--size", "448")), ()),
    ],
    ids=lambda value: f"{value.name}{value.ending}" if isinstance(value, Verb) else "",
)
def test_a_full_disk_keeps_the_old_result(
    verb: Verb, options: tuple[str, ...], dune: Dune, photos: list[Path], model: Path, small_disk: Path
) -> None:
    target = small_disk / f"result{verb.ending}"
    target.write_text("old")
    done = dune(*_arguments(verb, photos, target, model), "--overwrite", *options)
    _refused(done, 1, "the disk is full")
    assert _everything_below(small_disk) == [target.name] and target.read_text() == "old"


def test_a_full_disk_leaves_no_colmap_model(dune: Dune, photos: list[Path], output: Path, small_disk: Path) -> None:
    model = small_disk / "model"
    done = dune(*_arguments(VERBS[0], photos, output / "a.ply", ""), "--colmap", model)
    _refused(done, 1, "the disk is full")
    assert _everything_below(small_disk) == []


def test_a_read_only_disk(dune: Dune, photos: list[Path], small_disk: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    read_only, remount = 1, 32
    assert libc.mount(b"tmpfs", os.fsencode(small_disk), b"tmpfs", read_only | remount, None) == 0
    for verb in VERBS:
        _refused(dune(*_arguments(verb, photos, small_disk / f"new/a{verb.ending}", "absent.pth")), 2, "Read-only")


@pytest.mark.parametrize(
    ("kind", "share"),
    [(signal.SIGKILL, 0.3), (signal.SIGKILL, 0.6), (signal.SIGKILL, 0.9), (signal.SIGTERM, 0.6), (signal.SIGINT, 0.6)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_killed_run_leaves_the_old_result_or_a_whole_one(
    kind: signal.Signals, share: float, photos: list[Path], output: Path, whole_run: tuple[float, int]
) -> None:
    """Killed after a share of the time that a whole run takes."""
    seconds, count = whole_run
    target = output / "scene.ply"
    target.write_text("old")
    command = [sys.executable, "-m", "dune_cli.cli", *_arguments(VERBS[0], photos, target, ""), "--overwrite"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(share * seconds)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    if target.read_bytes() != b"old":
        assert len(read_ply(target)["x"]) == count
    assert {name for name in _everything_below(output) if not name.startswith(".dune-")} <= {"scene.ply", "scene.json"}
    if kind == signal.SIGINT and process.returncode != 0:
        # by the system, where the interpreter winds up or C++ code does not listen
        assert (process.returncode, said) in ((130, "dune: interrupted\n"), (-signal.SIGINT, ""))
    deadline = time.monotonic() + 10
    while [name for name in _everything_below(output) if name.startswith(".dune-")]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[float, int]:
    """Seconds and number of points of a run that nobody kills."""
    target = tmp_path_factory.mktemp("whole") / "scene.ply"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dune_cli.cli", *_arguments(VERBS[0], photos, target, "")], check=True)
    return time.perf_counter() - start, len(read_ply(target)["x"])
