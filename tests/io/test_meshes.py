from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dune_cli.errors import UserError
from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.formats.ply import write_ply_mesh
from dune_cli.io.meshes import Frustum, Mesh, read_mesh

SRGB_LINEAR = {0: 0.0, 10: 0.0030353, 128: 0.2158605, 188: 0.5028865, 255: 1.0}  # IEC 61966-2-1


@pytest.fixture
def meshes() -> list[Mesh]:
    rng = np.random.default_rng(0)
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 3, 2]])
    colors = rng.integers(0, 256, (4, 3)).astype(np.uint8)
    return [
        Mesh(rng.normal(size=(4, 3)), faces, colors, "person_000"),
        Mesh(rng.normal(size=(4, 3)) + 5, faces[:2].astype(np.uint32), colors[::-1], "left wall"),
    ]


@pytest.fixture
def camera() -> Frustum:
    turn = np.deg2rad(30)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    pose[:3, 3] = [0.5, -0.25, 2.0]
    return Frustum(np.array([[500, 0, 300.0], [0, 520, 250.0], [0, 0, 1]]), pose, 640, 480, "img1.jpg")


def _glb(path: Path) -> tuple[dict, bytes]:
    """The two chunks, by the letter of the specification."""
    content = path.read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sII I4s", content)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(content), b"JSON")
    assert json_length % 4 == 0
    binary_length, binary_kind = struct.unpack_from("<I4s", content, 20 + json_length)
    assert binary_kind == b"BIN\0" and binary_length % 4 == 0 and 28 + json_length + binary_length == length
    return json.loads(content[20 : 20 + json_length]), content[28 + json_length :]


def _values(tree: dict, binary: bytes, index: int) -> np.ndarray:
    accessor = tree["accessors"][index]
    view = tree["bufferViews"][accessor["bufferView"]]
    kind = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
    wide = {"VEC3": 3, "SCALAR": 1}[accessor["type"]]
    values = np.frombuffer(binary, kind, accessor["count"] * wide, view["byteOffset"]).reshape(-1, wide)
    assert view["byteLength"] == values.nbytes
    return values


def test_obj_round_trip(meshes: list[Mesh], tmp_path: Path) -> None:
    write_obj(tmp_path / "a.obj", meshes)
    scene = trimesh.load(tmp_path / "a.obj", split_object=True, group_material=False, process=False)
    back = trimesh.util.concatenate(list(scene.geometry.values())) if isinstance(scene, trimesh.Scene) else scene
    assert len(back.faces) == 5
    triangles = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes])
    assert np.allclose(back.triangles, triangles, atol=1e-6)
    colors = np.concatenate([mesh.colors[mesh.faces] for mesh in meshes])
    assert np.array_equal(back.visual.vertex_colors[back.faces][..., :3], colors)


def test_obj_text_names_its_groups(meshes: list[Mesh], tmp_path: Path) -> None:
    plain = Mesh(meshes[0].vertices, meshes[0].faces, None, "")
    write_obj(tmp_path / "a.obj", [*meshes, plain])
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert [line for line in lines if line.startswith("g ")] == ["g person_000", "g left_wall", "g mesh"]
    assert [len(line.split()) for line in lines if line.startswith("v ")] == [7] * 8 + [4] * 4
    assert lines[-1] == "f 10 12 11" and all(
        max(map(int, line.split()[1:])) <= 12 for line in lines if line[:2] == "f "
    )


def test_glb_by_the_letter(meshes: list[Mesh], camera: Frustum, tmp_path: Path) -> None:
    points = np.array([[0, 1, 2], [3, 4, 5.0]])
    levels = np.array([[0, 10, 128], [188, 255, 0]], np.uint8)
    write_glb(tmp_path / "a.glb", meshes, points, levels, [camera])
    tree, binary = _glb(tmp_path / "a.glb")
    nodes = {node["name"]: node for node in tree["nodes"]}
    assert list(nodes) == ["person_000", "left wall", "points", "img1.jpg", "img1.jpg frustum"]
    assert tree["scenes"][0]["nodes"] == [0, 1, 2, 3, 4]
    for mesh in meshes:
        primitive = tree["meshes"][nodes[mesh.name]["mesh"]]["primitives"][0]
        positions = _values(tree, binary, primitive["attributes"]["POSITION"])
        assert np.array_equal(positions, (mesh.vertices * [1, -1, -1]).astype(np.float32))
        assert np.array_equal(_values(tree, binary, primitive["indices"]).reshape(-1, 3), mesh.faces)
        accessor = tree["accessors"][primitive["attributes"]["POSITION"]]
        assert np.array_equal(accessor["min"], positions.min(0)) and np.array_equal(accessor["max"], positions.max(0))
        assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    primitive = tree["meshes"][nodes["points"]["mesh"]]["primitives"][0]
    assert primitive["mode"] == 0
    assert np.array_equal(_values(tree, binary, primitive["attributes"]["POSITION"]), points * [1, -1, -1])
    linear = _values(tree, binary, primitive["attributes"]["COLOR_0"])
    assert np.allclose(linear.ravel(), [SRGB_LINEAR[level] for level in levels.ravel()], atol=1e-6)


def test_glb_cameras_see_what_the_photos_saw(meshes: list[Mesh], camera: Frustum, tmp_path: Path) -> None:
    """A point that projects to the photo's middle right edge lies on the glTF camera's right frustum plane (its +x)."""
    centred = Frustum(np.array([[500, 0, 319.5], [0, 520, 239.5], [0, 0, 1]]), camera.world_from_cam, 640, 480, "c")
    write_glb(tmp_path / "a.glb", meshes, cameras=[camera, centred])
    tree, binary = _glb(tmp_path / "a.glb")
    node = next(node for node in tree["nodes"] if node["name"] == "c")
    perspective = tree["cameras"][node["camera"]]["perspective"]
    gltf_world_from_cam = np.array(node["matrix"]).reshape(4, 4).T
    for pixel, expected in (((639.5, 239.5), (1, 0)), ((319.5, -0.5), (0, 1)), ((319.5, 239.5), (0, 0))):
        ray = np.linalg.inv(centred.K) @ [*pixel, 1]
        world = camera.world_from_cam @ [*(3 * ray), 1]
        x, y, z, _ = np.linalg.inv(gltf_world_from_cam) @ (world * [1, -1, -1, 1])
        clip_y = y / -z / np.tan(perspective["yfov"] / 2)
        clip_x = x / -z / (np.tan(perspective["yfov"] / 2) * perspective["aspectRatio"])
        assert z < 0 and (clip_x, clip_y) == pytest.approx(expected, abs=1e-9)
    assert tree["cameras"][0]["extras"] == {"K": camera.K.tolist(), "width": 640, "height": 480}
    frustum = next(node for node in tree["nodes"] if node["name"] == "img1.jpg frustum")
    outline = _values(tree, binary, tree["meshes"][frustum["mesh"]]["primitives"][0]["attributes"]["POSITION"])
    corners = outline[1:] * [1, -1, -1] @ camera.K.T  # the off-centre K is exact in the outline
    assert np.allclose(
        corners[:, :2] / corners[:, 2:], [[-0.5, -0.5], [639.5, -0.5], [639.5, 479.5], [-0.5, 479.5]], atol=1e-3
    )


def test_trimesh_reads_the_glb(meshes: list[Mesh], camera: Frustum, tmp_path: Path) -> None:
    write_glb(tmp_path / "a.glb", meshes, meshes[0].vertices, meshes[0].colors, [camera])
    scene = trimesh.load(tmp_path / "a.glb")
    assert np.allclose(scene.geometry["left wall"].vertices, meshes[1].vertices * [1, -1, -1], atol=1e-6)
    assert len(scene.geometry["points"].vertices) == 4 and "img1.jpg frustum" in scene.geometry
    assert np.degrees(2 * np.arctan(240 / 520)) == pytest.approx(scene.camera.fov[1])
    assert np.allclose(scene.camera_transform[:3, 3], camera.world_from_cam[:3, 3] * [1, -1, -1])


def test_empty_meshes_and_cameras_alone(camera: Frustum, tmp_path: Path) -> None:
    empty = Mesh(np.empty((0, 3)), np.empty((0, 3), int), None, "nobody")
    write_glb(tmp_path / "a.glb", [empty], np.empty((0, 3)), None, [camera])
    assert list(trimesh.load(tmp_path / "a.glb").geometry) == ["img1.jpg frustum"]
    write_obj(tmp_path / "a.obj", [])
    assert (tmp_path / "a.obj").read_text().startswith("# dune")


@pytest.mark.parametrize(
    "wrong",
    [
        {"vertices": np.full((4, 3), np.inf)},
        {"vertices": np.zeros((4, 2))},
        {"faces": np.array([[0, 1, 4]])},
        {"faces": np.array([[0, 1, -1]])},
        {"faces": np.zeros((1, 3))},
        {"colors": np.zeros((4, 3))},
        {"colors": np.zeros((3, 3), np.uint8)},
    ],
)
def test_meshes_that_are_none(wrong: dict[str, np.ndarray], meshes: list[Mesh]) -> None:
    fields = {"vertices": meshes[0].vertices, "faces": meshes[0].faces, "colors": meshes[0].colors}
    with pytest.raises(ValueError):
        Mesh(**(fields | wrong))


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_what_is_written_is_read(suffix: str, meshes: list[Mesh], camera: Frustum, tmp_path: Path) -> None:
    path = tmp_path / f"scene.{suffix}"
    write = {"obj": write_obj, "ply": write_ply_mesh, "glb": lambda *given: write_glb(*given, cameras=[camera])}
    write[suffix](path, meshes)
    back = read_mesh(path)
    assert back.name == "scene" and len(back.vertices) == 8
    triangles = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes])
    colors = np.concatenate([mesh.colors[mesh.faces] for mesh in meshes])
    read = back.vertices[back.faces]
    order, own = (np.argsort(each.sum((1, 2))) for each in (read, triangles))  # GLB's meshes come in any order
    assert np.allclose(read[order], triangles[own], atol=1e-6)
    assert np.array_equal(back.colors[back.faces][order], colors[own])
    write[suffix](path, [Mesh(meshes[0].vertices, meshes[0].faces)])
    assert (read_mesh(path).colors is None) == (suffix != "ply")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.stl", b"", r"ending \.stl; allowed: \.glb \.obj \.ply"),
        ("a.glb", b"glTF", "damaged or no GLB file"),
        ("a.ply", b"ply\nnonsense", "damaged or no PLY file"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "damaged or no OBJ file"),
        ("a.obj", b"v 0 0 0\n", "holds no triangles|damaged"),
        ("missing.obj", None, "no such file"),
    ],
)
def test_files_that_are_no_meshes(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_mesh(tmp_path / name)
