"""The example that draws a mesh takes what `dune reconstruct` writes: GLB, OBJ and PLY show the same picture."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.formats.ply import write_ply_mesh
from dune_cli.io.meshes import Frustum, Mesh, read_mesh
from support import EXAMPLES
from support.examples import load_example

EXAMPLE = EXAMPLES / "render_mesh.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example(EXAMPLE)


def test_every_format_shows_the_same(example: ModuleType, tmp_path: Path) -> None:
    corners = np.array([[-1.0, -1, 4], [1, -1, 4], [1, 1, 4], [-1, 1, 5]])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    quad = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), colors, "quad")
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    write_glb(tmp_path / "s.glb", [quad, quad], cameras=[Frustum(K, np.eye(4), 100, 80, "a.png")])
    write_obj(tmp_path / "s.obj", [quad])
    write_ply_mesh(tmp_path / "s.ply", [quad])
    pictures = []
    for ending in ("glb", "obj", "ply"):
        mesh = read_mesh(tmp_path / f"s.{ending}")
        pose = example.orbit_pose(mesh.vertices, 15.0, -5.0)
        pictures.append(example.render(mesh.vertices, mesh.faces, mesh.colors, 80, 60, pose, 80.0))
        assert (pictures[-1] != 255).any(-1).mean() > 0.05
    for other in pictures[1:]:
        assert np.abs(other.astype(int) - pictures[0]).mean() < 2


def test_points_alone_end_with_a_sentence(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_glb(tmp_path / "p.glb", [], np.zeros((5, 3)), np.zeros((5, 3), np.uint8), [])
    monkeypatch.setattr("sys.argv", ["render_mesh.py", str(tmp_path / "p.glb"), str(tmp_path / "p.png")])
    with pytest.raises(SystemExit, match=r"holds no triangles.*render_ply\.py"):
        example.main()
