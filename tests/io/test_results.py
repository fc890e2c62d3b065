"""Results read back: points, triangles, cameras and photos of what the verbs write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io.formats import DepthData
from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.npz import write_depth as write_depth_npz
from dune_cli.io.formats.npz import write_npz
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.formats.ply import write_ply, write_ply_mesh
from dune_cli.io.formats.png import write_depth as write_depth_png
from dune_cli.io.json_files import write_json
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.png import class_colors, save_png, write_class_png
from dune_cli.io.results import joined, read_result, result_files

RNG = np.random.default_rng(3)
K = np.array([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])
POINTS = RNG.uniform(-1, 1, (20, 3)).astype(np.float32).astype(float)
COLORS = RNG.integers(0, 256, (20, 3)).astype(np.uint8)
TRIANGLE = Mesh(POINTS[:3], np.array([[0, 1, 2]]), COLORS[:3], "person_000")
POSE = np.array([[0.0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1]])
CAMERA = Frustum(K, POSE, 32, 24, "photo.png")


def scene_json(file: str, **fields: Any) -> dict[str, Any]:
    camera = {"image": "photo.png", "width": 32, "height": 24, "K": K, "world_from_cam": POSE, "registered": True}
    lost = {"image": "lost.png", "width": 32, "height": 24, "registered": False, "world_from_cam": None}
    document = {"schema": "dune.scene/1", "scale": "metric", "cameras": [lost, camera], "points": {"file": file}}
    return document | {"mesh": None, "provenance": {"inputs": [{"path": "photo.png", "sha256": ""}]}} | fields


def test_points_with_all_their_fields_and_the_cameras_beside(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    normals, confidence = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True), np.arange(20.0)
    write_ply(path, POINTS, COLORS, confidence, normals)
    write_json(tmp_path / "scene.json", scene_json("scene.ply", world_offset=[1, 2, 3]))
    save_png(tmp_path / "photo.png", np.zeros((24, 32, 3), np.uint8))
    for named in (path, tmp_path / "scene.json"):
        result = read_result(named)
        assert result.path == path and result.metric
        assert np.allclose(result.data.points, POINTS) and np.array_equal(result.data.colors, COLORS)
        assert np.allclose(result.data.normals, normals, atol=1e-6)
        assert np.array_equal(result.data.confidence, confidence)
        (camera,) = result.data.cameras
        assert camera.name == "photo.png" and np.allclose(camera.world_from_cam[:3, 3], [4, 4, 4])
        assert result.photos == (tmp_path / "photo.png",)
    write_json(tmp_path / "scene.json", scene_json("other.ply"))  # of another file
    assert not read_result(path).data.cameras and not read_result(path).metric


def test_a_glb_has_points_in_their_own_colours_triangles_and_cameras(tmp_path: Path) -> None:
    write_glb(tmp_path / "a.glb", [TRIANGLE], POINTS, COLORS, [CAMERA])
    result = read_result(tmp_path / "a.glb")
    assert np.allclose(result.data.points, POINTS, atol=1e-6) and np.array_equal(result.data.colors, COLORS)
    assert np.allclose(result.data.meshes[0].vertices, TRIANGLE.vertices, atol=1e-6)
    (camera,) = result.data.cameras
    assert np.allclose(camera.K, K) and np.allclose(camera.world_from_cam, POSE) and camera.width == 32
    assert result.photos == (None,) and len(result.positions) == 23


@pytest.mark.parametrize("write", [write_obj, write_ply_mesh])
def test_people_with_their_camera(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / ("people.obj" if write is write_obj else "people.ply")
    write(path, [TRIANGLE])
    document = {
        "schema": "dune.human/1",
        "scale": "assumed",
        "image": {"file": "away/photo.png", "width": 32, "height": 24},
        "camera": {"fx": 30, "fy": 30, "cx": 15.5, "cy": 11.5, "source": "given"},
        "people": [{"mesh": f"{path.name}#person_000"}],
    }
    write_json(tmp_path / "people.json", document)
    result = read_result(tmp_path / "people.json")
    assert np.array_equal(result.data.cameras[0].K, K) and result.metric and result.photos == (None,)
    assert np.allclose(result.data.meshes[0].vertices, TRIANGLE.vertices, atol=1e-6)


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_depth_is_points_in_the_colours_of_the_photo(kind: str, tmp_path: Path, capsys: Any) -> None:
    rgb = RNG.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    depth = RNG.integers(1000, 3000, (24, 32)).astype(np.float32) / 1000
    depth[0, :5] = np.nan
    data = DepthData(depth, rgb, K, np.ones((24, 32), np.float32))
    facts = (write_depth_npz if kind == "npz" else write_depth_png)(tmp_path / f"d.{kind}", data)
    image = {"path": str(tmp_path / "photo.png"), "width": 32, "height": 24}
    document = {"schema": "dune.depth/1", "file": f"d.{kind}", "image": image, "scale": "relative", "K": K, **facts}
    write_json(tmp_path / "d.json", document)
    save_png(tmp_path / "photo.png", rgb)
    result = read_result(tmp_path / f"d.{kind}")
    assert len(result.data.points) == 24 * 32 - 5 and not result.metric
    assert np.array_equal(result.data.colors[0], rgb[0, 5])
    x, y, z = result.data.points[0]
    assert (30 * x / z + 15.5, 30 * y / z + 11.5) == pytest.approx((5, 0)) and z == pytest.approx(depth[0, 5], abs=1e-3)
    assert (result.data.confidence is not None) == (kind == "npz")
    classes = np.arange(24 * 32).reshape(24, 32) % 3
    write_class_png(tmp_path / "classes.png", classes, class_colors(3))
    write_json(tmp_path / "classes.json", {"schema": "dune.classmap/1", "file": "classes.png", "image": image})
    shown = read_result(tmp_path / f"d.{kind}").data.class_colors
    assert np.array_equal(shown, class_colors(3)[classes.ravel()[5:]])
    (tmp_path / "photo.png").unlink()
    assert (read_result(tmp_path / "d.json").data.colors[0] != rgb[0, 5]).any()
    assert "its photo is not here" in capsys.readouterr().err
    (tmp_path / "d.json").unlink()
    assert len(read_result(tmp_path / f"d.{kind}").data.cameras) == 1
    assert ("field of view of 55" in capsys.readouterr().err) == (kind == "png")


def test_the_arrays_of_a_scene(tmp_path: Path) -> None:
    grid = POINTS.reshape(4, 5, 3)
    view = {"points": grid, "valid": np.eye(4, 5, dtype=bool), "colors": COLORS.reshape(4, 5, 3)}
    arrays = {f"view{k}_{name}": value for k in (0, 1) for name, value in view.items()}
    write_npz(tmp_path / "s.npz", view0_K=K, view1_K=K, **arrays)
    result = read_result(tmp_path / "s.npz")
    assert len(result.data.points) == 8 and np.array_equal(
        result.data.colors[:4], COLORS.reshape(4, 5, 3)[np.eye(4, 5) > 0]
    )
    write_npz(tmp_path / "s.npz", view0_K=K, fused_points=POINTS, fused_normals=POINTS, **arrays)
    assert np.array_equal(read_result(tmp_path / "s.npz").data.normals, POINTS)


def test_several_together(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", POINTS, COLORS, np.ones(20))
    write_ply(tmp_path / "b.ply", POINTS)
    write_obj(tmp_path / "c.obj", [TRIANGLE])
    data = joined([read_result(tmp_path / name) for name in ("a.ply", "b.ply", "c.obj")])
    assert len(data.points) == len(data.colors) == 40 and (data.colors[20:] == 200).all()
    assert data.confidence is None and len(data.meshes) == 1


def test_a_folder_stands_for_its_results(tmp_path: Path) -> None:
    for name in ("b10.ply", "b2.ply"):
        write_ply(tmp_path / "in" / name, POINTS)
    write_json(tmp_path / "in" / "b2.json", scene_json("b2.ply"))
    save_png(tmp_path / "in" / "photo.png", np.zeros((24, 32, 3), np.uint8))
    write_npz(tmp_path / "in" / "features.npz", cls=np.zeros(3))
    assert [path.name for path in result_files([tmp_path / "in"])] == ["b2.ply", "b10.ply"]
    assert [path.name for path in result_files([tmp_path])] == ["b2.ply", "b10.ply"]  # of its subfolders


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.stl", b"", r"ending \.stl; what can be shown ends in"),
        ("a.ply", None, "no such file"),
        ("a.json", b"{}", "no JSON of dune reconstruct, human or depth"),
        ("a.json", b'{"schema": "dune.scene/1", "points": {"file": null}, "mesh": null}', "names no file"),
        ("a.json", b'{"schema": "dune.human/1", "people": []}', "names no file"),
        ("a.glb", b"glTF", "damaged or no GLB file"),
        ("a.npz", b"PK", "no ZIP|damaged"),
        ("a.png", b"\x89PNG", "a.png"),
    ],
)
def test_one_sentence_of_what_cannot_be_shown(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path / name)


def test_nothing_to_show(tmp_path: Path) -> None:
    write_glb(tmp_path / "nobody.glb", [], None, None, [CAMERA])
    write_ply(tmp_path / "empty.ply", np.zeros((0, 3)))
    for name in ("nobody.glb", "empty.ply"):
        with pytest.raises(UserError, match="neither points nor triangles"):
            read_result(tmp_path / name)
    with pytest.raises(UserError, match="holds no result that can be shown"):
        result_files([(tmp_path / "photos").mkdir() or tmp_path / "photos"])
    with pytest.raises(UserError, match="no such file or folder"):
        result_files([tmp_path / "missing.ply"])


def test_a_damaged_json_beside_is_told_and_left_out(tmp_path: Path, capsys: Any) -> None:
    write_ply(tmp_path / "s.ply", POINTS)
    document = scene_json("s.ply")
    document["cameras"][1]["K"] = [[1, 2], [3, 4]]
    write_json(tmp_path / "s.json", document)
    assert not read_result(tmp_path / "s.ply").data.cameras
    assert "without the cameras of s.json" in capsys.readouterr().err
