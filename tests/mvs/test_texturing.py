"""A mesh of a ray-cast scene shows its photos: what the texture has at a face is what the scene has there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.ndimage import map_coordinates

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.geometry.depth_maps import grid_triangles, used_vertices
from dune_cli.io.formats.glb import write_glb
from dune_cli.io.formats.obj import write_obj
from dune_cli.io.meshes import Frustum, Mesh, read_mesh
from dune_cli.mvs.texturing import texture_mesh
from support import synthetic_scenes

WIDTH, HEIGHT = 160, 120
K = cameras.K_from_fov(60, WIDTH, HEIGHT)
POSES = [np.eye(4), synthetic_scenes.pose((0.0, 0.04, 0.01), (0.35, 0.0, 0.05))]
GAINS = (1.0, 0.8)  # exposures of the photos
CAMERAS = [Frustum(K, pose, WIDTH, HEIGHT) for pose in POSES]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    shots = [synthetic_scenes.render(K, pose, WIDTH, HEIGHT)[0] for pose in POSES]
    return [(shot * gain).astype(np.uint8) for shot, gain in zip(shots, GAINS)]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """What the first view sees, and a triangle behind all cameras."""
    depth = synthetic_scenes.render(K, POSES[0], WIDTH, HEIGHT)[1][::2, ::2]
    kept, faces = used_vertices(grid_triangles(depth, np.ones(depth.shape, bool)))
    pixels = 2 * cameras.pixel_grid(*depth.shape).reshape(-1, 2)[kept]
    vertices = np.vstack([cameras.backproject(pixels, depth.ravel()[kept], K), -np.eye(3) - [0, 0, 5]])
    colors = np.full((len(vertices), 3), [250, 20, 120], np.uint8)
    return Mesh(vertices, np.vstack([faces, len(kept) + np.arange(3)]), colors, "surface")


@pytest.fixture(scope="module")
def textured(mesh: Mesh, photos: list[np.ndarray]) -> Mesh:
    return texture_mesh(mesh, CAMERAS, photos.__getitem__)


def _at(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.column_stack(
        [map_coordinates(picture[..., k].astype(float), [y, x], order=1, mode="nearest") for k in range(3)]
    )


def _centres(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Of all faces the centre, and the colour that the texture has there."""
    assert mesh.uv is not None and mesh.texture is not None
    height, width = mesh.texture.shape[:2]
    uv = mesh.uv[mesh.faces].mean(1)
    return mesh.vertices[mesh.faces].mean(1), _at(mesh.texture, uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5)


def test_the_texture_is_what_the_photos_show(textured: Mesh, mesh: Mesh, photos: list[np.ndarray]) -> None:
    assert len(textured.faces) == len(mesh.faces) and textured.colors is None
    np.testing.assert_array_equal(textured.vertices[textured.faces], mesh.vertices[mesh.faces])
    points, colors = _centres(textured)
    shown = [
        _at(photo, *cameras.project(poses.transform_points(poses.inverse(pose), points[:-1]), K).T)
        for photo, pose in zip(photos, POSES)
    ]
    errors = np.stack([np.abs(colors[:-1] / np.maximum(photo, 8) - 1).mean(1) for photo in shown])
    assert np.median(errors.min(0)) < 0.15  # one gain a view apart from one of the photos
    assert np.corrcoef(colors[:-1].ravel(), shown[0].ravel())[0, 1] > 0.97
    np.testing.assert_allclose(colors[-1], mesh.colors[-1], atol=8)  # no view sees it


def test_exposures_are_evened_out(textured: Mesh, mesh: Mesh) -> None:
    """At vertices of several charts, the charts have about the same colour."""
    assert textured.uv is not None and textured.texture is not None
    height, width = textured.texture.shape[:2]
    colors = _at(textured.texture, textured.uv[:, 0] * width - 0.5, textured.uv[:, 1] * height - 0.5)
    order = np.lexsort(textured.vertices.T)
    same = (np.diff(textured.vertices[order], axis=0) == 0).all(1)
    one, other = colors[order[:-1][same]], colors[order[1:][same]]
    assert same.sum() > 20
    assert np.median(np.abs(np.log((one.mean(1) + 8) / (other.mean(1) + 8)))) < 0.1  # log(1 / 0.8) is 0.22


def test_a_small_texture_holds_all_charts(mesh: Mesh, photos: list[np.ndarray]) -> None:
    small = texture_mesh(mesh, CAMERAS, photos.__getitem__, size_px=64)
    assert small.texture is not None and max(small.texture.shape[:2]) <= 64 + 3
    _, colors = _centres(small)
    _, full = _centres(texture_mesh(mesh, CAMERAS, photos.__getitem__))
    assert np.corrcoef(colors[:-1].ravel(), full[:-1].ravel())[0, 1] > 0.8


def test_a_surface_that_no_view_sees(photos: list[np.ndarray], mesh: Mesh) -> None:
    hidden = Mesh(mesh.vertices[-3:], np.array([[0, 1, 2]]))
    with pytest.raises(JobFailed, match="no photo shows the surface"):
        texture_mesh(hidden, CAMERAS, photos.__getitem__)


def test_third_parties_read_the_texture(textured: Mesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "scene.glb", [textured])
    write_obj(tmp_path / "scene.obj", [textured])
    points, colors = _centres(textured)
    for name in ("scene.glb", "scene.obj"):
        (loaded,) = trimesh.load_scene(tmp_path / name, process=False).geometry.values()
        material = loaded.visual.material
        image = np.asarray(getattr(material, "baseColorTexture", None) or material.image)[..., :3]
        np.testing.assert_array_equal(image, textured.texture)
        assert len(loaded.faces) == len(textured.faces)
        u, v = loaded.visual.uv[loaded.faces].mean(1).T  # trimesh counts v from below
        height, width = image.shape[:2]
        np.testing.assert_allclose(_at(image, u * width - 0.5, (1 - v) * height - 0.5), colors, atol=1.5)
        centres = loaded.vertices[loaded.faces].mean(1) * ([1, -1, -1] if name.endswith("glb") else 1)
        np.testing.assert_allclose(centres, points, rtol=1e-5, atol=1e-5)
        assert read_mesh(tmp_path / name).colors is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.glb", "scene.mtl", "scene.obj", "scene.png"]
