from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.json_files import dumps, json_lines, write_json
from dune_cli.io.png import save_png
from dune_cli.io.safe_read import read_json


def test_json_of_everything_that_results_hold(tmp_path: Path) -> None:
    value = {
        "schema": "dune.scene/1",
        "K": np.array([[994.978, 0, 311.193], [0, 994.978, 254.877], [0, 0, 1]]),
        "path": Path("a/ü.jpg"),
        "numbers": [np.float32(0.1), np.float64(0.1), np.int64(7), np.bool_(True), np.float16(0.5)],
        "float32": np.array([0.1, 2.5e-7], np.float32),
        "not numbers": [float("nan"), np.inf, -np.inf, np.float32("nan")],
        "empty": [{}, [], None, True, "\n[ 1, 2 ]\n"],
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {
        "schema": "dune.scene/1",
        "K": [[994.978, 0, 311.193], [0, 994.978, 254.877], [0, 0, 1]],
        "path": "a/ü.jpg",
        "numbers": [0.1, 0.1, 7, True, 0.5],
        "float32": [0.1, 2.5e-7],
        "not numbers": [None] * 4,
        "empty": [{}, [], None, True, "\n[ 1, 2 ]\n"],
    }
    assert list(json.loads(text)) == list(value)  # the order stays
    assert "    [994.978, 0.0, 311.193],\n" in text and "ü" in text and text.endswith("}\n")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_json_round_trip(value: object) -> None:
    assert json.loads(dumps(value)) == value


def test_json_lines_are_there_when_all_are(tmp_path: Path) -> None:
    values = [{"a": np.float32(0.1), "b": "é\n"}, [np.nan, np.arange(3)], "x"]
    with json_lines(tmp_path / "some.jsonl") as write:
        for value in values:
            write(value)
        assert not (tmp_path / "some.jsonl").exists()
    text = (tmp_path / "some.jsonl").read_text(encoding="ascii")
    assert [json.loads(line) for line in text.splitlines()] == [{"a": 0.1, "b": "é\n"}, [None, [0, 1, 2]], "x"]
    with pytest.raises(TypeError), json_lines(tmp_path / "failed.jsonl") as write:
        write({1: 2})
    assert [path.name for path in tmp_path.iterdir()] == ["some.jsonl"]


def test_json_of_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"image": name})
    assert read_json(tmp_path / "a.json") == {"image": name}


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": {1, 2}}, {"a": b"x"}, np.array([object()])])
def test_values_without_a_json_form(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="absent"):
        read_json(tmp_path / "absent.json")


def test_npz(tmp_path: Path) -> None:
    arrays = {"path": np.arange(5), "cls": np.ones((3, 4), np.float32), "file": np.float64(2.5)}
    write_npz(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as back:
        assert sorted(back) == ["cls", "file", "path"]
        assert all(np.array_equal(back[name], arrays[name]) and back[name].dtype == arrays[name].dtype for name in back)
    with pytest.raises(ValueError):
        write_npz(tmp_path / "b.npz", wrong=np.array([object()]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    "picture",
    [
        np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8),
        np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8),
        np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16),
        np.random.default_rng(0).integers(0, 65536, (20, 60)).astype(np.uint16)[:, ::2],
    ],
)
def test_png(picture: np.ndarray, tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture)
    back = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(back, picture)


@pytest.mark.parametrize("picture", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)])
def test_pictures_that_png_does_not_take(picture: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        save_png(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())
