"""FIFOs, devices, sockets and folders where a file is expected: every reader refuses them at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from dune_cli.bodies.smplx import read_model
from dune_cli.checkpoints.weight_files import read_weights
from dune_cli.checkpoints.weights_folder import read_pins
from dune_cli.commands.options import FiniteRange
from dune_cli.errors import DuneError
from dune_cli.evaluation.pairs import read_pairs as read_pair_sets
from dune_cli.evaluation.posed_sets import read_posed_sets
from dune_cli.io.cache import read_cached, write_cached
from dune_cli.io.colmap.read import open_model
from dune_cli.io.depth_files import read_depth
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.inputs import expand
from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.photos import PhotoInfo, read_header, read_photo
from dune_cli.io.pose_files import read_poses
from dune_cli.io.safe_read import read_json, read_npz, read_text
from dune_cli.io.video import Video
from dune_cli.provenance import sha256_of
from dune_cli.sfm.pairs import read_pairs
from dune_cli.sfm.photo_map import open_map

PHOTO = PhotoInfo(Path("a.jpg"), 640, 480, "0" * 64, None)
READERS: dict[str, Callable[[Path], Any]] = {
    "photo.jpg": read_photo,
    "video.mp4": Video,
    "depth.png": read_depth,
    "depth.npz": read_depth,
    "poses.json": read_poses,
    "poses.txt": read_poses,
    "K.json": lambda path: resolve_intrinsics([PHOTO], str(path), None),
    "pairs.txt": lambda path: read_pairs(path, [Path("a.jpg"), Path("b.jpg")]),
    "images.bin": lambda path: open_model(path.parent),
    "images.txt": lambda path: open_model(path.parent),
    "scene.json": lambda path: open_map(path.parent),
    "pairs.json": lambda path: read_pair_sets(path.parent),
    "cameras.json": lambda path: read_posed_sets(path.parent),
    "lock.json": lambda path: read_pins(path.parent),
    "SMPLX_NEUTRAL.npz": lambda path: read_model(path, 10, 10),
    "weights.safetensors": read_weights,
    "weights.pth": read_weights,
    "cloud.ply": read_ply,
    "a.json": read_json,
    "a.txt": lambda path: read_text(path, "a list"),
    "a.npz": lambda path: read_npz(path, "arrays"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", list(READERS))
def test_what_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("fifo", "socket", "device", "folder"):
        path = tmp_path / kind / name
        path.parent.mkdir()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with monkeypatch.context() as there, socket.socket(socket.AF_UNIX) as listener:
                there.chdir(path.parent)  # a socket's path holds 107 bytes
                listener.bind(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif name.startswith("poses"):  # a folder is a COLMAP model there
            continue
        else:
            path.mkdir()
        with pytest.raises(DuneError) as caught:
            READERS[name](path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_inputs_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    for inputs in ([tmp_path / "a.jpg"], ["/dev/zero"], [tmp_path], [str(tmp_path / "*.jpg")]):
        with pytest.raises(DuneError):
            expand(inputs)


@pytest.mark.timeout(20)
def test_hashes_caches_and_headers_do_not_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(tmp_path / "fifo")
    assert read_header(tmp_path / "fifo") is None
    assert read_cached(tmp_path / "fifo", "s", "m") is None and "computed again" in capsys.readouterr().err
    write_cached(tmp_path / "fifo", "s", "m", {"a": np.ones(3)})
    assert read_cached(tmp_path / "fifo", "s", "m") is not None


def test_numbers_of_options_are_finite() -> None:
    @click.command()
    @click.option("--scale", type=FiniteRange(0, min_open=True))
    def command(scale: float) -> None:
        click.echo(scale)

    assert CliRunner().invoke(command, ["--scale", "2.5"]).output == "2.5\n"
    for word in ("nan", "inf", "1e999", "-1", "x"):
        assert CliRunner().invoke(command, ["--scale", word]).exit_code == 2
