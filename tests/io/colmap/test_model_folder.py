"""Which of several COLMAP models below a folder is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.io.colmap.read import model_folder, open_model
from dune_cli.io.colmap.write import write_colmap
from dune_cli.io.meshes import Frustum

K = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])


def write(folder: Path, count: int, binary: bool = True) -> None:
    write_colmap(folder, [Frustum(K, np.eye(4), 64, 48, f"{i}.jpg") for i in range(count)], binary=binary)


@pytest.mark.parametrize("binary", [True, False])
def test_the_largest_is_taken_and_all_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], binary: bool
) -> None:
    for name, count in {"0": 2, "1": 5, "10": 3}.items():
        write(tmp_path / "sparse" / name, count, binary)
    for place in (tmp_path, tmp_path / "sparse"):
        assert model_folder(place) == tmp_path / "sparse" / "1"
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        for word in ("0 (2)", "1 (5)", "10 (3)", "1 is taken"):
            assert word in told
    assert len(open_model(tmp_path).images) == 5
    capsys.readouterr()
    assert model_folder(tmp_path / "sparse" / "0") == tmp_path / "sparse" / "0"  # named, it is meant
    assert capsys.readouterr().err == ""


def test_one_model_needs_no_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_folder(tmp_path) is None and model_folder(tmp_path / "none") is None
    write(tmp_path / "sparse" / "0", 2)
    (tmp_path / "sparse" / "1").mkdir()
    assert model_folder(tmp_path) == tmp_path / "sparse" / "0"
    write(tmp_path / "flat" / "sparse", 2)
    assert model_folder(tmp_path / "flat") == tmp_path / "flat" / "sparse"
    assert capsys.readouterr().err == ""


def test_a_damaged_count_wins_nothing(tmp_path: Path) -> None:
    write(tmp_path / "sparse" / "0", 2)
    write(tmp_path / "sparse" / "1", 3)
    (tmp_path / "sparse" / "1" / "images.bin").write_bytes(b"\xff" * 20)
    assert model_folder(tmp_path) == tmp_path / "sparse" / "0"
