from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dune_cli.errors import UserError
from dune_cli.io.formats.ply import read_ply, write_ply


@pytest.fixture
def cloud() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "points": rng.normal(size=(1000, 3)) * 10,
        "colors": rng.integers(0, 256, (1000, 3)).astype(np.uint8),
        "confidence": rng.random(1000).astype(np.float32) * 20,
        "normals": rng.normal(size=(1000, 3)),
    }


@pytest.mark.parametrize(
    "extras", [(), ("colors",), ("colors", "confidence"), ("normals",), ("normals", "colors", "confidence")]
)
def test_round_trip(extras: tuple[str, ...], cloud: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", cloud["points"], **{name: cloud[name] for name in extras})
    back = read_ply(tmp_path / "a.ply")
    names = {"normals": ["nx", "ny", "nz"], "colors": ["red", "green", "blue"], "confidence": ["confidence"]}
    order = [name for part in ("normals", "colors", "confidence") if part in extras for name in names[part]]
    assert list(back) == ["x", "y", "z", *order]
    assert np.array_equal(np.stack([back[axis] for axis in "xyz"], 1), cloud["points"].astype(np.float32))
    for part in extras:
        values = np.stack([back[name] for name in names[part]], 1).squeeze()
        assert np.array_equal(values, cloud[part].astype(values.dtype))
    assert back["x"].dtype == np.float32 and all(
        back[c].dtype == np.uint8 for c in order if c in ("red", "green", "blue")
    )


def test_open3d_reads_the_same(cloud: dict[str, np.ndarray], tmp_path: Path) -> None:
    libusb = pytest.importorskip("libusb_package")
    ctypes.CDLL(str(libusb.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    open3d = pytest.importorskip("open3d")
    write_ply(tmp_path / "a.ply", **cloud)
    read = open3d.io.read_point_cloud(str(tmp_path / "a.ply"))
    assert np.array_equal(np.asarray(read.points), cloud["points"].astype(np.float32))
    assert np.array_equal(np.round(np.asarray(read.colors) * 255).astype(np.uint8), cloud["colors"])
    assert np.asarray(read.normals).shape == (1000, 3)


def test_trimesh_reads_the_same(cloud: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", cloud["points"], cloud["colors"], cloud["confidence"])
    read = trimesh.load(tmp_path / "a.ply")
    assert np.array_equal(read.vertices, cloud["points"].astype(np.float32))
    assert np.array_equal(read.colors[:, :3], cloud["colors"])


def test_no_points_at_all(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", np.empty((0, 3)), np.empty((0, 3), np.uint8), np.empty(0))
    assert {name: len(values) for name, values in read_ply(tmp_path / "a.ply").items()} == dict.fromkeys(
        ["x", "y", "z", "red", "green", "blue", "confidence"], 0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"points": np.zeros((1000, 2))},
        {"colors": np.zeros((999, 3), np.uint8)},
        {"colors": np.zeros((1000, 3))},
        {"confidence": np.zeros(999)},
        {"points": np.full((1000, 3), np.nan)},
        {"points": np.full((1000, 3), 1e39)},
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_do_not_fit(change: dict[str, np.ndarray], cloud: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_ply(tmp_path / "a.ply", **(cloud | change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"ply\nformat ascii 1.0\nend_header\n", b"\x89PNG", b"ply\nformat binary_little_endian 1.0\n"]
)
def test_files_that_are_not_ours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.ply"):
        read_ply(tmp_path / "a.ply")


def test_a_cut_file(cloud: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", **cloud)
    (tmp_path / "a.ply").write_bytes((tmp_path / "a.ply").read_bytes()[:-1])
    with pytest.raises(UserError, match="1000 points are announced, 999 are there"):
        read_ply(tmp_path / "a.ply")
