"""Laws of pictures of scenes: what covers which pixels, what hides what, and their colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dune_cli.errors import UserError
from dune_cli.geometry.framing import VirtualCamera
from dune_cli.io.formats import SceneData
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.scene_colors import GREY, colorings, recolored
from dune_cli.io.scene_pictures import draw, orbit
from dune_cli.io.video import frames as frames_of
from dune_cli.io.video_output import write_video

WIDTH, HEIGHT = 40, 30
K = np.array([[20.0, 0, 20], [0, 20, 15], [0, 0, 1]])
VIEW = VirtualCamera(K, np.eye(4), WIDTH, HEIGHT, np.array([0.0, 0, 2]))
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
UP = np.array([0.0, -1, 0])


def at(x: float, y: float, depth: float) -> list[float]:
    """The point at a pixel and depth of VIEW."""
    return [(x - 20) / 20 * depth, (y - 15) / 20 * depth, depth]


def cloud(*points: tuple[float, float, float], color: tuple[int, int, int] = RED) -> SceneData:
    colors = np.tile(np.uint8(color), (len(points), 1))
    return SceneData(np.array([at(*point) for point in points]), colors)


def square(depth: float, color: tuple[int, int, int], low: float = 9.5, high: float = 19.5) -> Mesh:
    """Of whole pixels: from `low` to `high` in both directions."""
    corners = np.array([at(low, low, depth), at(high, low, depth), at(high, high, depth), at(low, high, depth)])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.tile(np.uint8(color), (4, 1)))


def test_a_square_covers_its_pixels_and_no_others() -> None:
    picture = draw(SceneData(meshes=(square(2.0, BLUE),)), VIEW)
    expected = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    expected[10:20, 10:20] = BLUE
    assert np.array_equal(picture, expected)
    assert np.array_equal(draw(SceneData(meshes=(square(2.0, BLUE),)), VIEW, smooth=False), expected)


@pytest.mark.parametrize("smooth", [True, False])
def test_points_are_squares_of_their_size(smooth: bool) -> None:
    picture = draw(cloud((5, 6, 2), (0, 0, 2), (100, 6, 2)), VIEW, (0, 0, 0), point_px=3, smooth=smooth)
    expected = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    expected[5:8, 4:7] = expected[:2, :2] = RED
    assert np.array_equal(picture, expected)


def test_what_is_nearer_hides_what_is_farther_whatever_their_order() -> None:
    near, far = square(2.0, BLUE), square(3.0, GREEN)
    for meshes in ((near, far), (far, near)):
        assert (draw(SceneData(meshes=meshes), VIEW)[12:18, 12:18] == BLUE).all()
    both = SceneData(np.array([at(15, 15, 1), at(12, 12, 3)]), np.uint8([RED, RED]), meshes=(near,))
    picture = draw(both, VIEW, point_px=1)
    assert tuple(picture[15, 15]) == RED and tuple(picture[12, 12]) == BLUE
    points = np.array([at(5, 5, 2 + k % 7) for k in range(50)])
    colors = np.uint8([RED if k % 7 == 0 else GREEN for k in range(50)])
    assert tuple(draw(SceneData(points, colors), VIEW, point_px=2)[5, 5]) == RED
    behind = SceneData(np.array([at(5, 5, -2)]), np.uint8([RED]), meshes=(square(-2.0, GREEN),))
    assert (draw(behind, VIEW) == 255).all()


def test_the_size_of_points_follows_from_their_number() -> None:
    covered = [
        (draw(SceneData(points, np.zeros((len(points), 3), np.uint8)), VIEW) == 0).all(-1).mean()
        for points in (
            np.array([at(x, y, 2) for x in np.arange(0, 40, s) for y in np.arange(0, 30, s)]) for s in (1, 1.4, 2, 4)
        )
    ]
    assert min(covered) > 0.9


def test_cameras_are_drawn_where_they_look() -> None:
    camera = Frustum(K, np.eye(4), WIDTH, HEIGHT)
    aside = VIEW.turned(60, 0)
    data = SceneData(np.array([at(20, 15, 2)]), np.uint8([GREEN]), cameras=[camera])
    without, with_cameras = (draw(data, aside.farther(2), point_px=1, cameras=shown) for shown in (False, True))
    assert (without != with_cameras).any(-1).sum() > 10


def test_an_orbit_begins_at_the_view_and_swings_to_both_sides() -> None:
    turn = [one.world_from_cam for one in orbit(VIEW, 8, 360)]
    assert np.allclose(turn[0], np.eye(4)) and np.allclose(turn[4][:3, 3], [0, 0, 4])
    swing = [one.world_from_cam[0, 3] for one in orbit(VIEW, 8, 60)]
    assert swing[0] == 0 and swing[2] == pytest.approx(1) and swing[6] == pytest.approx(-1)
    assert np.allclose(np.array(swing[1:4]), -np.array(swing[5:]))


def test_colours() -> None:
    mesh = square(2.0, BLUE)
    data = SceneData(np.array([at(5, 5, 2), at(5, 25, 2)]), None, np.array([1.0, 9.0]), meshes=(mesh,))
    assert colorings(data) == ["color", "shaded", "normal", "height", "confidence"]
    assert colorings(SceneData(data.points)) == ["color", "height"]
    own = recolored(data, "color", UP)
    assert (own.colors == GREY).all()
    assert 0 < own.meshes[0].colors[0, 2] < 255 and not own.meshes[0].colors[:, :2].any()  # plain: shaded
    many = np.arange(360).astype(np.uint8).reshape(120, 3)
    pictured = Mesh(np.tile(mesh.vertices, (30, 1)), mesh.faces, many)
    assert np.array_equal(recolored(SceneData(meshes=(pictured,)), "color", UP).meshes[0].colors, pictured.colors)
    assert recolored(data, "normal", UP).meshes[0].colors[0].tolist() in ([128, 128, 0], [128, 128, 255])
    turbo = recolored(data, "confidence", UP).colors.astype(int)
    assert np.abs(turbo[0] - turbo[1]).max() > 50
    high, low = recolored(data, "height", UP).colors.astype(int)
    assert np.array_equal(recolored(data, "height", -UP).colors[0], low) and (high != low).any()
    classes = replace(data, class_colors=np.uint8([RED, BLUE]))
    assert recolored(classes, "class", UP).colors.tolist() == [list(RED), list(BLUE)]
    with pytest.raises(UserError, match="allowed here: color, height"):
        recolored(SceneData(data.points), "confidence", UP)


def test_normals_seen_from_a_camera_are_blue_where_they_face_it() -> None:
    data = SceneData(np.zeros((1, 3)), None, None, np.array([[0.0, 0, -1]]))
    assert recolored(data, "normal", UP, np.eye(4)).colors.tolist() == [[128, 128, 255]]
    behind = VIEW.turned(180, 0).world_from_cam
    assert np.abs(recolored(data, "normal", UP, behind).colors[0].astype(int) - [128, 128, 0]).max() <= 1


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_video_holds_its_frames(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    shades = [np.full((32, 48, 3), shade, np.uint8) for shade in (20, 120, 220)]
    assert write_video(path, shades, 5) == 3
    if suffix != "gif":
        back = [frame.rgb for frame in frames_of(path)]
    else:
        back = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))]
    assert len(back) == 3
    assert all(np.abs(a.astype(int) - b).max() < 8 for a, b in zip(back, shades))
    with pytest.raises(ValueError, match="needs frames"):
        write_video(path, [], 5)
    assert path.exists()
