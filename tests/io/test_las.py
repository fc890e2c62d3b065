"""LAS and LAZ: read back by laspy, in the coordinates of the world, within a tenth of a millimetre."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dune_cli.io import formats
from dune_cli.io.crs import open_crs
from dune_cli.io.formats import SceneData

laspy = pytest.importorskip("laspy")


def cloud(count: int = 500) -> SceneData:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(count, 3))
    return SceneData(
        (rng.normal(size=(count, 3)) * 50).astype(np.float32),
        rng.integers(0, 256, (count, 3)).astype(np.uint8),
        rng.random(count).astype(np.float32),
        (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32),
    )


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_a_georeferenced_cloud(ending: str, tmp_path: Path) -> None:
    offset = np.array([691230.0, 5334760.0, 520.0])
    data = replace(cloud(), crs_offset=offset, crs_wkt=open_crs("EPSG:32632").wkt)
    path = tmp_path / f"a.{ending}"
    assert formats.of(path).write_scene(path, data) == [
        *("X", "Y", "Z", "red", "green", "blue"),
        *("confidence", "NormalX", "NormalY", "NormalZ"),
    ]
    read = laspy.read(path)
    assert data.points is not None and data.colors is not None and data.confidence is not None
    np.testing.assert_allclose(np.column_stack([read.x, read.y, read.z]), data.points + offset, atol=0.6e-4)
    np.testing.assert_array_equal(np.column_stack([read.red, read.green, read.blue]) // 257, data.colors)
    np.testing.assert_array_equal(np.asarray(read["confidence"]), data.confidence)
    np.testing.assert_array_equal(np.asarray(read["NormalZ"]), data.normals[:, 2])
    assert read.header.parse_crs().to_epsg() == 32632 and read.header.version == "1.4"
    assert (path.read_bytes() == write_again(path, data)) and path.stat().st_size > 1000


def write_again(path: Path, data: SceneData) -> bytes:
    formats.of(path).write_scene(path, data)
    return path.read_bytes()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e10])
def test_any_unit_keeps_six_digits(scale: float, tmp_path: Path) -> None:
    points = np.random.default_rng(1).normal(size=(50, 3)) * scale
    path = tmp_path / "a.las"
    formats.of(path).write_scene(path, SceneData(points, world_offset=np.array([1e3, 0, 0])))
    read = laspy.read(path)
    found = np.column_stack([read.x, read.y, read.z]) - [1e3, 0, 0]
    assert np.abs(found - points).max() < 2e-6 * np.ptp(points) + 1e-10
    assert read.header.parse_crs() is None


def test_few_points(tmp_path: Path) -> None:
    for points in (np.zeros((0, 3)), np.array([[1e6, 2, 3.0]])):
        path = tmp_path / "a.las"
        formats.of(path).write_scene(path, SceneData(points, np.zeros((len(points), 3), np.uint8)))
        read = laspy.read(path)
        assert len(read.points) == len(points)
        if len(points):
            np.testing.assert_allclose([read.x[0], read.y[0], read.z[0]], points[0])
