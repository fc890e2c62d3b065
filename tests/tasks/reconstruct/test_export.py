"""A scene as files: what is written is what was reconstructed, in every format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.geometry.camera_models import Camera
from dune_cli.io import orientation
from dune_cli.io.formats.ply import read_ply
from dune_cli.io.json_files import dumps
from dune_cli.io.meshes import Mesh
from dune_cli.io.pose_files import read_poses
from dune_cli.provenance import Source
from dune_cli.sfm.scene import FusedCloud, ImagePair, PointMap, Scene, SparsePoints, View
from dune_cli.tasks.reconstruct import export

K = np.array([[50.0, 0, 19.5], [0, 52.0, 14.5], [0, 0, 1]])


@pytest.fixture
def scene() -> Scene:
    """A dense view of two planes with a step between them, and a second camera with matched points."""
    rng = np.random.default_rng(0)
    depth = np.where(np.arange(40) < 20, 2.0, 3.0) * np.ones((30, 1))
    points = cameras.backproject(cameras.pixel_grid(30, 40), depth, K)
    valid = np.ones((30, 40), dtype=bool)
    valid[:, :3] = False
    colors = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    dense = PointMap(points, rng.random((30, 40)), valid, colors, np.eye(3))
    world_from_2 = poses.from_rotation_translation(
        poses.rotation_from_rotvec(np.array([0, 0.1, 0])), np.array([1.0, 0, 0])
    )
    pixels1 = np.array([[1.0, 4.0], [2.0, 25.0], [30.0, 10.0]])
    sparse_points = cameras.backproject(pixels1, np.array([2.0, 2.0, 3.0]), K)
    pixels2 = cameras.project(poses.transform_points(poses.inverse(world_from_2), sparse_points), K)
    sparse = SparsePoints.from_full_tracks(sparse_points, np.full((3, 3), 9, np.uint8), np.ones(3), (pixels1, pixels2))
    return Scene(
        method="matches",
        views=(
            View("a.png", 40, 30, K, "given", np.eye(4), dense=dense),
            View("b.png", 40, 30, K, "exif", world_from_2),
        ),
        pairs=(ImagePair((0, 1), 10, 8),),
        sparse=sparse,
        scale="arbitrary",
        scale_note="why",
        reprojection_error_px=0.5,
        parallax_deg=3.0,
        sources=(Source("sift"),),
    )


def sparse_only(scene: Scene) -> Scene:
    return replace(scene, views=tuple(replace(view, dense=None) for view in scene.views))


def test_the_json_is_the_schema(scene: Scene, tmp_path: Path) -> None:
    points, mesh = export.write_scene(scene, tmp_path / "scene.ply")
    tree = json.loads(dumps(export.scene_json(scene, points, mesh, {"dune": "x"})))
    assert list(tree) == [
        "schema", "scale", "scale_note", "method", "image_size_is", "world", "cameras", "pairs", "points", "mesh",
        "quality", "provenance",
    ]  # fmt: skip
    assert tree["schema"] == "dune.scene/1" and tree["world"] == "camera 0" and tree["mesh"] is None
    assert list(tree["cameras"][0]) == [
        "image", "width", "height", "K", "focal_source", "world_from_cam", "cam_from_world", "registered",
        "camera",
    ]  # fmt: skip
    second = tree["cameras"][1]
    np.testing.assert_allclose(np.array(second["world_from_cam"]) @ second["cam_from_world"], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(second["world_from_cam"], scene.views[1].world_from_cam)
    assert tree["pairs"] == [{"images": [0, 1], "matches": 10, "inliers": 8, "confidence": 0.8}]
    assert tree["quality"] == {"reprojection_error_px": 0.5, "registered": 2, "total": 2}
    metric = export.scene_json(replace(scene, scale="metric", scale_note=None), points, mesh, {})
    assert "scale_note" not in metric


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_depths_and_models_are_those_of_the_stored_pixels(scene: Scene, tmp_path: Path, tag: int) -> None:
    turned = replace(scene, views=tuple(replace(view, orientation=tag) for view in scene.views))
    trees = []
    for name, one in {"up": scene, "down": turned}.items():
        assert export.write_depths(one, tmp_path / name) == 1
        trees.append(json.loads((tmp_path / name / "depths.json").read_text()))
        export.write_colmap_model(one, tmp_path / f"{name}-model", True)
    up, down = (np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("up", "down"))
    np.testing.assert_array_equal(orientation.to_upright(down, tag), up)
    entry = trees[1]["depths"][0]
    assert trees[1]["image_size_is"] == "stored" and (entry["height"], entry["width"]) == down.shape
    np.testing.assert_allclose(entry["K"], orientation.stored_camera(K, np.eye(4), 40, 30, tag).K)
    models = [pycolmap.Reconstruction(str(tmp_path / f"{name}-model")) for name in ("up", "down")]
    moved = orientation.stored_from_upright(40, 30, tag)
    for one, two in zip(*(sorted(model.images.values(), key=lambda image: image.name) for model in models)):
        for seen, stored in zip(one.points2D, two.points2D, strict=True):
            np.testing.assert_allclose(stored.xy - 0.5, cameras.transform_pixels(moved, seen.xy - 0.5), atol=1e-9)
            np.testing.assert_allclose(
                two.project_point(models[1].points3D[stored.point3D_id].xyz), stored.xy, atol=1e-6
            )


def test_large_coordinates_in_every_format(scene: Scene, tmp_path: Path) -> None:
    """World coordinates in double precision, or less an offset that the file and the JSON name."""
    offset = np.array([512340.0, 4567890.0, 190.0])
    far = replace(scene, world_offset=offset)
    near_points = scene.cloud()[0]
    trees = {}
    for ending in ("ply", "npz", "glb", "obj"):
        points, mesh = export.write_scene(far, tmp_path / f"s.{ending}")
        trees[ending] = json.loads(dumps(export.scene_json(far, points, mesh, {})))
        pose = np.array(trees[ending]["cameras"][1]["world_from_cam"])
        np.testing.assert_allclose(pose[:3, 3] - offset, scene.views[1].world_from_cam[:3, 3], atol=1e-8)
        assert trees[ending]["world_offset"] == ([0, 0, 0] if ending in ("ply", "npz") else offset.tolist())
    table = read_ply(tmp_path / "s.ply")
    cloud = np.stack([table[axis] for axis in "xyz"], axis=1)
    assert cloud.dtype == np.float64
    np.testing.assert_allclose(cloud - offset, near_points, atol=1e-8)
    assert read_ply_by_another(tmp_path / "s.ply").shape == cloud.shape
    arrays = np.load(tmp_path / "s.npz")
    np.testing.assert_allclose(arrays["sparse_points"] - offset, scene.sparse.points_world, atol=1e-6)
    np.testing.assert_allclose(
        arrays["view0_points"][..., 2] - 190, scene.views[0].dense.points_world[..., 2], atol=1e-6
    )
    np.testing.assert_allclose(arrays["view1_world_from_cam"][:3, 3] - offset, [1, 0, 0], atol=1e-8)
    head = (tmp_path / "s.obj").read_text().splitlines()[:2]
    assert head[1].startswith("# world_offset 512340.0 4567890.0 190.0")
    assert np.abs(trimesh.load(tmp_path / "s.obj").bounds).max() < 10
    text = (tmp_path / "s.glb").read_bytes()
    tree = json.loads(text[20 : 20 + int.from_bytes(text[12:16], "little")])
    assert tree["asset"]["extras"]["world_offset"] == offset.tolist()
    assert np.abs(trimesh.load(tmp_path / "s.glb").bounds).max() < 10
    export.write_colmap_model(far, tmp_path / "model", True)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    for image in model.images.values():
        for seen in image.points2D:
            point = model.points3D[seen.point3D_id].xyz
            assert np.abs(point - offset).max() < 10
            np.testing.assert_allclose(image.project_point(point), seen.xy, atol=1e-4)
    export.write_transforms_json(far, tmp_path / "t.json", [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "s.ply")
    found = read_poses(tmp_path / "t.json")
    np.testing.assert_allclose(found["b.png"][:3, 3] - offset, [1, 0, 0], atol=1e-8)


def read_ply_by_another(path: Path) -> np.ndarray:
    return np.asarray(trimesh.load(path).vertices)


def test_ply_holds_the_surface_where_it_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    points, mesh = export.write_scene(scene, tmp_path / "a.ply", surface=True)
    read = trimesh.load(tmp_path / "a.ply", process=False)
    assert points["file"] is None and mesh is not None and mesh["file"] == "a.ply"
    assert (len(read.vertices), len(read.faces)) == (mesh["vertices"], mesh["faces"])
    far = replace(scene, world_offset=np.array([512_340.0, 4_567_890.0, 190.0]))
    export.write_scene(far, tmp_path / "far.ply", surface=True)
    moved = np.asarray(trimesh.load(tmp_path / "far.ply", process=False).vertices, np.float64)
    np.testing.assert_allclose(moved - far.world_offset, read.vertices, atol=1e-3)


def test_ply_holds_dense_points_and_the_matched_ones_beside_them(scene: Scene, tmp_path: Path) -> None:
    points, mesh = export.write_scene(scene, tmp_path / "scene.ply")
    table = read_ply(tmp_path / "scene.ply")
    assert mesh is None and points["file"] == "scene.ply"
    assert list(table) == points["fields"] == ["x", "y", "z", "red", "green", "blue", "confidence"]
    # 37 columns are dense; two of three matched points lie in the three columns without
    assert len(table["x"]) == points["count"] == 30 * 37 + 2
    np.testing.assert_allclose(table["z"][-2:], 2.0, rtol=1e-6)
    dense = scene.views[0].dense
    np.testing.assert_array_equal(table["red"][: 30 * 37], dense.colors[dense.valid][:, 0])


def test_glb_holds_the_surface_cut_at_the_step_and_both_cameras(scene: Scene, tmp_path: Path) -> None:
    points, mesh = export.write_scene(scene, tmp_path / "scene.glb")
    assert points["count"] == 0 and mesh is not None
    assert mesh["faces"] == 2 * 29 * (16 + 19) and mesh["vertices"] == 30 * 37
    loaded = trimesh.load(tmp_path / "scene.glb")
    surface = next(g for g in loaded.geometry.values() if isinstance(g, trimesh.Trimesh))
    assert len(surface.faces) == mesh["faces"]
    assert surface.vertices[:, 2].max() <= -2  # glTF looks along -z
    text = (tmp_path / "scene.glb").read_bytes()
    header = json.loads(text[20 : 20 + int.from_bytes(text[12:16], "little")])
    assert [camera["name"] for camera in header["cameras"]] == ["a.png", "b.png"]


def test_obj_holds_the_surface(scene: Scene, tmp_path: Path) -> None:
    _, mesh = export.write_scene(scene, tmp_path / "scene.obj")
    lines = (tmp_path / "scene.obj").read_text().splitlines()
    assert sum(line.startswith("f ") for line in lines) == mesh["faces"]
    assert sum(line.startswith("v ") for line in lines) == mesh["vertices"]


def test_without_a_surface_glb_has_points_and_obj_says_what_to_do(scene: Scene, tmp_path: Path) -> None:
    points, mesh = export.write_scene(sparse_only(scene), tmp_path / "scene.glb")
    assert points["count"] == 3 and mesh is None
    with pytest.raises(JobFailed, match=r"no surface for scene\.obj, only 3 points"):
        export.write_scene(sparse_only(scene), tmp_path / "scene.obj")
    assert not (tmp_path / "scene.obj").exists()


def test_npz_holds_the_maps(scene: Scene, tmp_path: Path) -> None:
    points, _ = export.write_scene(scene, tmp_path / "scene.npz")
    arrays = np.load(tmp_path / "scene.npz")
    assert sorted(arrays.files) == sorted(points["fields"])
    assert arrays["view0_points"].shape == (30, 40, 3)
    np.testing.assert_allclose(arrays["view0_depth"][:, 3:], scene.views[0].depth[:, 3:])
    assert np.isnan(arrays["view0_depth"][:, :3]).all()
    np.testing.assert_array_equal(arrays["view1_world_from_cam"], scene.views[1].world_from_cam)
    assert "view1_points" not in arrays
    np.testing.assert_array_equal(arrays["sparse_pixels1"], scene.sparse.observations[1][1])


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_reads_back_the_same_cameras_and_tracks(scene: Scene, tmp_path: Path, binary: bool) -> None:
    export.write_colmap_model(scene, tmp_path / "model", binary)
    assert (tmp_path / "model" / ("cameras.bin" if binary else "cameras.txt")).exists()
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    for view in scene.views:
        image = model.find_image_with_name(view.image)
        np.testing.assert_allclose(image.cam_from_world().matrix(), poses.inverse(view.world_from_cam)[:3], atol=1e-9)
        # COLMAP's pixel (0.5, 0.5) is our (0, 0)
        expected = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
        np.testing.assert_allclose(model.camera(image.camera_id).params, expected)
    assert model.num_points3D() == 3 + 30 * 37
    two = [point for point in model.points3D.values() if point.track.length() == 2]
    assert len(two) == 3
    assert model.compute_mean_reprojection_error() < 1e-3


BENT = Camera("SIMPLE_RADIAL", (float(np.sqrt(50 * 52)), 19.5, 14.5, -0.05), 40, 30)


def many(scene: Scene) -> Scene:
    """The scene with a photo between its two that could not be placed, a fused cloud and surface, a radial term."""
    first, second = scene.views
    lost = View("lost.png", 40, 30, K, "default", np.full((4, 4), np.nan), registered=False, reason="no match")
    points, colors, confidence = sparse_only(scene).cloud()
    normals = np.tile([0.0, 0, -1], (len(points), 1))
    mesh = Mesh(points, np.array([[0, 1, 2]]), colors, "surface")
    one, two = scene.sparse.observations
    nothing = (np.zeros(0, np.int64), np.zeros((0, 2)))
    return replace(
        scene,
        views=(first, lost, replace(second, K=BENT.K, lens=BENT, dense=first.dense)),
        pairs=(ImagePair((0, 2), 10, 8), ImagePair((0, 1), 3, 0)),
        sparse=replace(scene.sparse, observations=(one, nothing, two)),
        components=((0, 2), (1,)),
        fused=FusedCloud(points, colors, normals, confidence),
        surface=mesh,
    )


def test_a_photo_without_a_pose_is_named_and_left_out(scene: Scene, tmp_path: Path) -> None:
    whole = many(scene)
    points, mesh = export.write_scene(whole, tmp_path / "scene.ply")
    assert points["count"] == 3 and points["fields"][3:6] == ["nx", "ny", "nz"]
    np.testing.assert_allclose(read_ply(tmp_path / "scene.ply")["nz"], -1)
    tree = json.loads(dumps(export.scene_json(whole, points, mesh, {})))
    assert [camera["registered"] for camera in tree["cameras"]] == [True, False, True]
    lost = tree["cameras"][1]
    assert lost["world_from_cam"] is None and lost["cam_from_world"] is None and lost["reason"] == "no match"
    assert tree["unregistered"] == [{"image": "lost.png", "reason": "no match"}]
    assert tree["components"] == [["a.png", "b.png"], ["lost.png"]]
    assert tree["cameras"][2]["radial"] == -0.05 and "radial" not in tree["cameras"][0]
    assert tree["quality"]["registered"] == 2 and tree["quality"]["total"] == 3
    arrays = np.load(_npz(whole, tmp_path))
    assert arrays["fused_normals"].shape == (3, 3) and arrays["sparse_index2"].tolist() == [0, 1, 2]


def _npz(scene: Scene, folder: Path) -> Path:
    export.write_scene(scene, folder / "scene.npz")
    return folder / "scene.npz"


def test_the_fused_surface_is_the_mesh(scene: Scene, tmp_path: Path) -> None:
    for ending in ("glb", "obj"):
        _, mesh = export.write_scene(many(scene), tmp_path / f"scene.{ending}")
        assert mesh is not None and (mesh["faces"], mesh["groups"]) == (1, ["surface"])
    doubled = many(scene).scaled(2, "metric", None)
    np.testing.assert_allclose(doubled.surface.vertices, 2 * many(scene).surface.vertices)
    np.testing.assert_allclose(doubled.fused.points_world, 2 * many(scene).fused.points_world)


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_has_the_radial_term_and_only_the_placed_photos(scene: Scene, tmp_path: Path, binary: bool) -> None:
    export.write_colmap_model(many(scene), tmp_path / "model", binary)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert sorted(image.name for image in model.images.values()) == ["a.png", "b.png"]
    camera = model.camera(model.find_image_with_name("b.png").camera_id)
    assert camera.model_name == "SIMPLE_RADIAL"
    np.testing.assert_allclose(camera.params, [np.sqrt(50 * 52), 20, 15, -0.05])
    two = [point for point in model.points3D.values() if point.track.length() == 2]
    assert len(two) == 3


def test_transforms_and_depths_of_the_placed_photos(scene: Scene, tmp_path: Path) -> None:
    photos = [tmp_path / name for name in ("a.png", "lost.png", "b.png")]
    export.write_transforms_json(many(scene), tmp_path / "t.json", photos, None)
    frames = json.loads((tmp_path / "t.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == ["a.png", "b.png"]
    assert [frame["k1"] for frame in frames] == [0.0, -0.05]
    assert export.write_depths(many(scene), tmp_path / "depths") == 2
    entries = json.loads((tmp_path / "depths" / "depths.json").read_text())["depths"]
    for entry, view in zip(entries, (scene.views[0], many(scene).views[2])):
        values = np.asarray(Image.open(tmp_path / "depths" / entry["file"])) / entry["png_scale"]
        valid = np.isfinite(view.depth) & (view.depth > 0)
        np.testing.assert_allclose(values[valid], view.depth[valid], atol=1e-3)
        assert not values[~valid].any()
    np.testing.assert_allclose(entries[0]["K"], K)
    assert export.write_depths(sparse_only(scene), tmp_path / "none") == 0 and not (tmp_path / "none").exists()


def test_what_a_network_filled_is_marked_everywhere(scene: Scene, tmp_path: Path) -> None:
    dense = scene.views[0].dense
    assert dense is not None
    filled = dense.valid & (np.arange(dense.valid.shape[1]) % 2 == 0)
    views = (replace(scene.views[0], dense=replace(dense, filled=filled)), *scene.views[1:])
    marked = replace(scene, views=views)
    assert marked.coverage + marked.filled_share == pytest.approx(scene.coverage) and scene.filled_share is None
    tree = export.scene_json(marked, {"file": "s.npz"}, None, {})
    assert tree["quality"]["filled_share"] == pytest.approx(filled.sum() / filled.size, rel=0.6)
    assert "filled_share" not in export.scene_json(scene, {"file": "s.npz"}, None, {})["quality"]
    export.write_depths(marked, tmp_path / "depths")
    entry = json.loads((tmp_path / "depths" / "depths.json").read_text())["depths"][0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "depths" / entry["filled"])) == 255, filled)
    export.write_scene(marked, tmp_path / "s.npz")
    assert np.array_equal(np.load(tmp_path / "s.npz")["view0_filled"], filled)


def test_points_of_many_views_are_dense_where_any_view_is(scene: Scene) -> None:
    """A matched point goes where one of the views that see it has a dense point there."""
    both = many(scene)
    unfused = replace(both, fused=None, surface=None)
    dense = sum(int(view.dense.valid.sum()) for view in (unfused.views[0], unfused.views[2]))
    assert dense <= len(unfused.cloud()[0]) < len(scene.cloud()[0]) + dense
