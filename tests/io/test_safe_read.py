"""Hostile and damaged files through the one way in: one sentence each, within memory and time."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import CheckpointError, UserError
from dune_cli.io.cache import read_cached, write_cached
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.json_files import Fields, finite_array
from dune_cli.io.safe_read import open_zip, parse_json, read_bytes, read_json, read_member, read_npz, read_text


def test_only_regular_files_within_the_limit_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "big").write_bytes(b"12345")
    for path, limit, words in (
        (tmp_path / "fifo", 9, "not a regular file"),
        (Path("/dev/zero"), 9, "not a regular file"),
        (tmp_path, 9, "is a folder"),
        (tmp_path / "none", 9, "no such file"),
        (tmp_path / "big", 4, "at most 4 bytes"),
        (tmp_path / "nul\0name", 9, "cannot read"),
    ):
        with pytest.raises(UserError, match=words):
            read_bytes(path, "a pose file", limit)
    assert read_bytes(tmp_path / "big", "a pose file", 5) == b"12345"
    with pytest.raises(CheckpointError):
        read_bytes(tmp_path / "none", "weights", 5, CheckpointError)


def test_a_small_file_asks_for_little_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "small").write_bytes(b"12345")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), hard))
    try:
        assert read_bytes(tmp_path / "small", "a model", 1 << 40) == b"12345"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa b")
    assert read_text(tmp_path / "bom.txt", "a list") == "a b"
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(UserError, match="byte 0"):
        read_text(tmp_path / "latin.txt", "a list")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        "1e999",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 70 + "1" + "}" * 70,
        str(2**64),
        '{"a": 1, "b": 2, "a": 3}',
        '"\\ud800',
    ],
    ids=range(11),
)
def test_what_is_no_json_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_json_within_the_limits_is_read(tmp_path: Path) -> None:
    deep = "[" * 60 + "1" + "]" * 60
    assert parse_json(deep, "x") and parse_json('{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    arrays = {
        "f": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array("ä text"),
        "none": np.zeros((0, 3), np.float32),
        "flag": np.array([True, False]),
        "big": np.arange(3, dtype=">i4"),
    }
    write_npz(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz", "a test file")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype and found[name].flags.writeable
    assert list(read_npz(tmp_path / "a.npz", "a test file", ["flag"])) == ["flag"]
    with pytest.raises(UserError, match="lacks nothing"):
        read_npz(tmp_path / "a.npz", "a test file", ["nothing"])


def _npz(path: Path, header: bytes, data: bytes = b"", version: int = 1) -> None:
    start = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", start + data)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }\n",
        b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }\n",
        b"(" * 9000 + b"\n",
        b"{'descr': '<f8', 'fortran_order': 1, 'shape': (1,), }\n",
        b"'''\n",
        b"\xff\n",
    ],
    ids=range(10),
)
def test_headers_that_do_not_fit_their_bytes_are_refused(header: bytes, tmp_path: Path) -> None:
    _npz(tmp_path / "a.npz", header, b"\0" * 7)
    with pytest.raises(UserError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz", "a test file")


def test_a_zip_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (8 << 20))
    with pytest.raises(UserError, match=r"unpacks to 8\.4 MB"):
        read_npz(tmp_path / "bomb.npz", "a test file", limit_bytes=1 << 20)
    with open_zip(tmp_path / "bomb.npz", "a ZIP") as archive, pytest.raises(UserError, match="more than"):
        read_member(archive, "a.npy", 1 << 20)


def test_every_damage_to_an_npz_is_one_sentence_or_the_same_arrays(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, a=np.arange(50.0), b=np.array("text"))
    whole = content.getvalue()
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "d.npz").write_bytes(bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)]))
        try:
            found = read_npz(tmp_path / "d.npz", "a test file")
        except UserError:
            continue
        assert all(np.array_equal(found[name], value) for name, value in (("a", np.arange(50.0)),) if name in found)


def test_cached_arrays_are_trusted_only_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.safetensors"
    arrays = {"K": np.eye(3), "none": np.zeros((0, 2), np.float32), "flag": np.array([True]), "one": np.array(2.5)}
    write_cached(path, "dune.test/1", "made of x", arrays)
    whole = path.read_bytes()
    found = read_cached(path, "dune.test/1", "made of x")
    assert found is not None and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert found["one"].shape == ()
    assert read_cached(path, "dune.test/1", "made of y") is None and not capsys.readouterr().err
    assert read_cached(path, "dune.test/2", "made of x") is None and "computed again" in capsys.readouterr().err
    assert read_cached(tmp_path / "none", "dune.test/1", "made of x") is None
    write_cached(path, "dune.test/1", "made of x", arrays)
    assert path.read_bytes() == whole
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        kept = read_cached(path, "dune.test/1", "made of x")
        assert kept is None or all(np.array_equal(kept[name], arrays[name]) for name in arrays)


def test_fields_are_what_they_must_be() -> None:
    fields = Fields(
        {"n": 3, "x": 2.5, "t": "a", "f": True, "m": [[1, 2], [3, 4]], "o": [{"k": 1}], "null": None}, "f.json"
    )
    assert fields.integer("n") == 3 and fields.number("n") == 3.0 and fields.text("t") == "a" and fields.flag("f")
    assert fields.array("m", (None, 2)).shape == (2, 2) and fields.objects("o")[0].integer("k") == 1
    assert fields.text("null", None) is None and fields.number("gone", 1.0) == 1.0
    for call, words in (
        (lambda: fields.integer("x"), "x is a number; a whole number is needed"),
        (lambda: fields.integer("f"), "f is true or false"),
        (lambda: fields.text("gone"), "has no 'gone'"),
        (lambda: fields.number("x", high=2), "allowed: from -inf to 2"),
        (lambda: fields.array("m", (3, 3)), "not a list of 3 x 3 numbers"),
        (lambda: Fields([], "f.json"), "f.json is a list; an object is needed"),
        (lambda: finite_array([["1"]], (1, 1), "x"), "not a list"),
        (lambda: finite_array([10**400], (1,), "x"), "not a list"),
        (lambda: finite_array([float("nan")], (1,), "x"), "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            call()
