"""Output formats are found by file: one more file makes one more `-o scene.EXT` and `-o depth.EXT`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io import formats
from dune_cli.io.formats import DepthData, SceneData
from dune_cli.io.outputs import check_output

XYZ = '''
"""XYZ: points as text."""
import numpy as np
CONTENT = ("points",)
AXES = "XYZ: as OpenCV"
def write_scene(path, scene):
    np.savetxt(path, scene.in_world(scene.points))
    return ["x", "y", "z"]
def write_depth(path, depth):
    np.savetxt(path, depth.depth)
    return {"invalid": "nan"}
'''


@pytest.fixture
def xyz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "xyz.py").write_text(XYZ)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "dune_cli.io.formats.xyz", raising=False)


def test_the_formats() -> None:
    assert formats.names("write_scene", first="ply") == ["ply", "glb", "las", "laz", "npz", "obj"]
    assert formats.names("write_scene", first="obj", content="surface") == ["obj", "glb", "ply"]
    assert formats.names("write_animation") == ["bvh", "glb"]
    assert formats.names("write_depth", first="png") == ["png", "exr", "npz", "ply"]


def test_one_file_is_one_more_format(xyz: None, tmp_path: Path) -> None:
    assert "xyz" in formats.names("write_scene") and "xyz" in formats.names("write_depth")
    assert "xyz" not in formats.names("write_scene", content="surface")
    path = check_output(tmp_path / "s.xyz", [f".{name}" for name in formats.names("write_scene")], False)
    assert formats.constant(path, "AXES", "") == "XYZ: as OpenCV" and not formats.constant(path, "OFFSET", False)
    points, offset = np.arange(6.0).reshape(2, 3), np.array([1e6, 0, 0])
    assert formats.of(path).write_scene(path, SceneData(points, world_offset=offset)) == ["x", "y", "z"]
    assert np.array_equal(np.loadtxt(path), points + offset)
    depth = DepthData(points, np.zeros((2, 3, 3), np.uint8), np.eye(3))
    assert formats.of(tmp_path / "D.XYZ").write_depth(path, depth) == {"invalid": "nan"}
    assert np.array_equal(np.loadtxt(path), points)


def test_an_unknown_extension_names_the_known_ones(tmp_path: Path) -> None:
    suffixes = [f".{name}" for name in formats.names("write_scene", first="ply")]
    with pytest.raises(UserError, match=r"the ending \.xyz; allowed: \.ply \.glb \.las \.laz \.npz \.obj"):
        check_output(tmp_path / "s.xyz", suffixes, False)
