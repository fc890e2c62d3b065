"""The rasteriser against ray casting by brute force, and laws of its pictures."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid
from dune_cli.geometry.depth_maps import grid_triangles
from dune_cli.io.meshes import Mesh
from dune_cli.io.rendering import PALETTE, distinct_color, overlay, rasterise, top_view, vertex_normals

WIDTH, HEIGHT = 37, 29
K = np.array([[40.0, 0.3, 17.2], [0, 44.0, 15.1], [0, 0, 1]])


def cast(vertices: np.ndarray, faces: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, face and shares of each pixel by solving, ray by ray, origin + t d = sum of shares times corners."""
    depth = np.full((HEIGHT, WIDTH), np.inf)
    face_index, shares = np.full((HEIGHT, WIDTH), -1), np.zeros((HEIGHT, WIDTH, 3))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            ray = np.linalg.solve(K, [x, y, 1])
            for face, (a, b, c) in enumerate(vertices[faces]):
                u, v, t = np.linalg.solve(np.stack([b - a, c - a, -ray], 1), -a)
                if u >= 0 and v >= 0 and u + v <= 1 and near <= t < depth[y, x]:
                    depth[y, x], face_index[y, x], shares[y, x] = t, face, (1 - u - v, u, v)
    return depth, face_index, shares


@pytest.mark.parametrize(("seed", "nearest"), [(5, 1.0), (6, 1.0), (5, -1.0), (6, -1.0), (7, -3.0)])
def test_equals_ray_casting_on_random_triangles(seed: int, nearest: float) -> None:
    """Before the camera, and reaching through the camera's plane and behind it."""
    rng = np.random.default_rng(seed)
    vertices = rng.uniform([-1.5, -1.5, nearest], [1.5, 1.5, 4.0], (45, 3))
    faces = rng.permutation(45).reshape(-1, 3)
    assert ((vertices[faces, 2] < 0).any(1) & (vertices[faces, 2] > 0).any(1)).any() == (nearest < 0)
    raster = rasterise(vertices, faces, K, WIDTH, HEIGHT, near=0.2)
    depth, face_index, shares = cast(vertices, faces, near=0.2)
    assert (face_index >= 0).mean() > 0.3
    assert len(np.unique(face_index)) >= 4
    np.testing.assert_array_equal(raster.face_index, face_index)
    np.testing.assert_allclose(raster.depth, depth, rtol=1e-6)
    np.testing.assert_allclose(raster.barycentric, shares, atol=1e-6)


def test_a_square_of_two_triangles_has_no_crack_and_its_edges_are_pixel_centres() -> None:
    # Corners at pixel centres (3, 2) and (9, 12), depth 2, unit focal length times 10.
    camera = np.array([[10.0, 0, 0], [0, 10, 0], [0, 0, 1]])
    corners = np.array([[3, 2], [9, 2], [9, 12], [3, 12]]) / 10 * 2
    vertices = np.concatenate([corners, np.full((4, 1), 2.0)], 1)
    raster = rasterise(vertices, np.array([[0, 1, 2], [0, 2, 3]]), camera, 20, 20)
    expected = np.zeros((20, 20), bool)
    expected[2:13, 3:10] = True
    np.testing.assert_array_equal(raster.covered, expected)
    np.testing.assert_allclose(raster.depth[expected], 2, rtol=1e-6)
    assert np.isinf(raster.depth[~expected]).all()
    np.testing.assert_allclose(
        raster.interpolate(vertices, np.array([[0, 1, 2], [0, 2, 3]]))[:, :2] * 5,
        np.argwhere(expected)[:, ::-1],
        atol=1e-5,
    )


def test_surface_points_lie_on_the_rays_of_their_pixels() -> None:
    vertices, faces = ball(0.5, (0.2, -0.1, 3))
    raster = rasterise(vertices, faces, K, WIDTH, HEIGHT)
    points = raster.interpolate(vertices, faces)
    pixels = points @ K.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], np.argwhere(raster.covered)[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(points[:, 2], raster.depth[raster.covered], atol=1e-6)


def test_nothing_behind_the_camera_or_off_the_image_is_drawn() -> None:
    for place in ((0, 0, -3), (50, 0, 3), (0, -50, 3)):
        vertices, faces = ball(0.5, place)
        assert not rasterise(vertices, faces, K, WIDTH, HEIGHT).covered.any()
    assert not rasterise(np.zeros((0, 3)), np.zeros((0, 3), int), K, WIDTH, HEIGHT).covered.any()


def test_lines_and_points_have_no_surface() -> None:
    vertices = np.array([[0, 0, 2.0], [1, 0, 2], [0.5, 0, 2], [0, 0, 2]])
    assert not rasterise(vertices, np.array([[0, 1, 2], [0, 0, 1], [0, 3, 3]]), K, WIDTH, HEIGHT).covered.any()


def ball(radius: float, centre: tuple[float, float, float], rings: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A closed sphere of triangles, outside counter-clockwise."""
    polar, turn = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings, False), indexing="ij"
    )
    points = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rings), np.arange(2 * rings), indexing="ij")
    a, b = i * 2 * rings + j, i * 2 * rings + (j + 1) % (2 * rings)
    c, d = a + 2 * rings, b + 2 * rings
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    return radius * points + np.array(centre), faces


def test_normals_of_a_ball_point_outwards() -> None:
    vertices, faces = ball(2.0, (0, 0, 0))
    away_from_poles = np.abs(vertices[:, 2]) < 1.9
    expected = vertices[away_from_poles] / 2
    np.testing.assert_allclose(vertex_normals(vertices, faces)[away_from_poles], expected, atol=0.03)


def test_overlay_hides_by_depth_and_leaves_the_rest_of_the_photo() -> None:
    camera = np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]])
    photo = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    near, far = Mesh(*ball(0.4, (-0.1, 0, 2))), Mesh(*ball(0.4, (0.6, 0, 4)))
    one, two = overlay(photo, [near], camera, alpha=1.0), overlay(photo, [near, far], camera, alpha=1.0)
    front = rasterise(near.vertices, near.faces, camera, 100, 80)
    both = front.covered | rasterise(far.vertices, far.faces, camera, 100, 80).covered
    inside = _shrunk(front.covered)
    assert inside.sum() > 500
    np.testing.assert_array_equal(two[inside], one[inside])  # the far one, drawn later, is hidden
    outside = _shrunk(~both)
    np.testing.assert_array_equal(two[outside], photo[outside])
    only_far = _shrunk(both & ~front.covered)
    assert only_far.any()
    assert (two[only_far] != one[only_far]).any(1).all()
    # Hue: every channel is the mesh's colour times one brightness.
    brightness = two[inside] / np.array(PALETTE[0], float).clip(1)
    np.testing.assert_allclose(brightness[:, 0], brightness[:, 1], atol=0.01)


def test_overlay_is_translucent_and_equal_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]])
    photo = np.random.default_rng(1).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    mesh = Mesh(*ball(0.4, (0, 0, 2)), colors=None)
    opaque = overlay(photo, [mesh], camera, alpha=1.0).astype(float)
    half = overlay(photo, [mesh], camera, alpha=0.5).astype(float)
    np.testing.assert_allclose(half, (opaque + photo) / 2, atol=1)
    before = photo.copy()
    monkeypatch.setattr("dune_cli.io.rendering.BAND_PIXELS", 700)
    in_bands = overlay(photo, [mesh], camera, alpha=0.5)
    np.testing.assert_allclose(in_bands, half, atol=1)
    assert (in_bands != half).mean() < 1e-3  # halves round by the last bit
    np.testing.assert_array_equal(photo, before)


def test_overlay_of_a_big_photo_has_one_sample_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]])
    mesh = Mesh(*ball(0.2, (0.3, -0.2, 2)))
    monkeypatch.setattr("dune_cli.io.rendering.FINE_PIXELS", 0)
    painted = overlay(np.zeros((80, 100, 3), np.uint8), [mesh], camera, alpha=1.0).any(-1)
    np.testing.assert_array_equal(painted, rasterise(mesh.vertices, mesh.faces, camera, 100, 80).covered)


@pytest.mark.parametrize("place", [(9, 0, 2), (0, -9, 2), (0, 0, -2)])
def test_overlay_of_what_cannot_be_seen_is_the_photo(place: tuple[float, float, float]) -> None:
    camera = np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]])
    photo = np.random.default_rng(2).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(photo, [Mesh(*ball(0.2, place))], camera), photo)
    np.testing.assert_array_equal(overlay(photo, [], camera), photo)


def test_overlay_uses_the_colors_of_a_mesh_and_refuses_other_pictures() -> None:
    camera = np.array([[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]])
    vertices, faces = ball(0.4, (0, 0, 2))
    mesh = Mesh(vertices, faces, colors=np.tile(np.array([0, 200, 0], np.uint8), (len(vertices), 1)))
    painted = overlay(np.zeros((80, 100, 3), np.uint8), [mesh], camera)[39, 49]
    assert painted[1] > 80
    assert painted[0] == painted[2] == 0
    with pytest.raises(ValueError, match=r"\(80, 100\) float64"):
        overlay(np.zeros((80, 100)), [mesh], camera)


def test_colors_of_people_differ() -> None:
    colors = np.array([distinct_color(i) for i in range(30)], float)
    apart = np.linalg.norm(colors[:, None] - colors, axis=-1) + 1000 * np.eye(30)
    assert apart.min() > 15


@pytest.mark.parametrize("z", [4.0, 400.0])
def test_top_view_is_to_scale(z: float) -> None:
    mesh = Mesh(*ball(0.01 * z, (0.3 * z, 0.2, z)))
    view = top_view([mesh], size_px=600, K=np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]), width=640)
    assert max(view.image.shape[:2]) == 600
    painted = np.argwhere(np.ptp(view.image.astype(int), axis=-1) > 50)[:, ::-1]
    expected = np.array(view.camera_px) + view.pixels_per_unit * np.array([0.3 * z, -z])
    np.testing.assert_allclose(painted.mean(0), expected, atol=0.3)
    np.testing.assert_allclose(np.ptp(painted, axis=0) + 1, 2 * 0.01 * z * view.pixels_per_unit, atol=1.5)


def test_top_view_of_nobody_is_a_grid() -> None:
    view = top_view([], size_px=200)
    assert view.image.shape[:2] == (200, 200)
    assert len(np.unique(view.image.reshape(-1, 3), axis=0)) > 2


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """Pixels whose 3 x 3 neighbourhood lies in the mask."""
    padded = np.pad(mask, 1)
    parts = [
        padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    return np.logical_and.reduce(parts)


def test_an_overlay_through_a_lens_covers_what_the_lens_sees() -> None:
    """A wall with small triangles, that reaches behind the camera."""
    lens = Camera("OPENCV_FISHEYE", (60.0, 61.0, 80.0, 58.0, 0.02, -0.004, 0.001, 0.0), 160, 120)
    x, y = np.meshgrid(np.linspace(-8, 0.5, 400), np.linspace(-0.4, 0.3, 40))
    wall = np.stack([x, y, 1.0 + 0.2 * x], -1)  # behind the camera from x = -5 on
    faces = grid_triangles(np.ones(x.shape), np.ones(x.shape, bool))
    photo = np.full((120, 160, 3), 100, np.uint8)
    drawn = overlay(photo, [Mesh(wall.reshape(-1, 3), faces)], lens.K, lens=lens)
    rays = lens.unproject(pixel_grid(120, 160))
    with np.errstate(all="ignore"):
        away = 1 / (rays[..., 2] - 0.2 * rays[..., 0])
        at = rays * away[..., None]
        hit = (away > 0) & (at[..., 0] > -8) & (at[..., 0] < 0.5) & (at[..., 1] > -0.4) & (at[..., 1] < 0.3)
    seen = np.isfinite(lens.project(wall.reshape(-1, 3))).all(-1)
    assert seen.any() and (wall.reshape(-1, 3)[seen, 2] <= 0).any()
    covered = (drawn != 100).any(-1)
    assert hit.sum() > 500 and (covered != hit).mean() < 0.01
