"""Metres by markers of known size: rendered on planes, found, triangulated; other sizes and false ones are left out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import JobFailed
from dune_cli.geometry import cameras, poses
from dune_cli.sfm import markers
from dune_cli.sfm.scene import Scene, View

WIDTH, HEIGHT = 640, 480
K = cameras.K_from_focal(520.0, WIDTH, HEIGHT)
UNIT_M = 0.37  # of the scene
SIZE_M = 0.16


def view(name: str, x: float, yaw: float) -> View:
    pose = poses.from_rotation_translation(poses.rotation_from_rotvec(np.array([0.02, yaw, 0.01])), np.array([x, 0, 0]))
    return View(name, WIDTH, HEIGHT, K, "given", pose)


VIEWS = (view("a.png", -0.6, 0.18), view("b.png", 0.1, -0.02), view("c.png", 0.7, -0.2))


def square(centre: tuple[float, float, float], rotvec: tuple[float, float, float], edge: float) -> np.ndarray:
    """(4, 3) corners of a marker in the scene, clockwise from its top left one."""
    flat = edge / 2 * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
    return flat @ poses.rotation_from_rotvec(np.array(rotvec)).T + centre


def picture(seen_from: View, squares: dict[tuple[str, int], np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8: grey with the markers, each with a white border."""
    image = np.full((HEIGHT, WIDTH), 140, np.uint8)
    cam_from_world = poses.inverse(seen_from.world_from_cam)
    for (dictionary, number), corners in squares.items():
        side = 400
        drawn = cv2.aruco.generateImageMarker(
            cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, markers.DICTIONARIES[dictionary])), number, side
        )
        drawn = cv2.copyMakeBorder(drawn, 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=255)
        pixels = seen_from.camera.project(poses.transform_points(cam_from_world, corners)).astype(np.float32)
        source = np.array([[60, 60], [459, 60], [459, 459], [60, 459]], np.float32) + np.array(
            [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], np.float32
        )
        homography = cv2.getPerspectiveTransform(source, pixels)
        high = cv2.warpPerspective(drawn, homography, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        mask = cv2.warpPerspective(np.full_like(drawn, 255), homography, (WIDTH, HEIGHT))
        image = np.where(mask > 127, high, image)
    return np.repeat(cv2.GaussianBlur(image, (3, 3), 0.7)[..., None], 3, axis=2)


def scene_with(folder: Path, squares: dict[tuple[str, int], np.ndarray]) -> tuple[Scene, list[Path]]:
    paths = [folder / one.image for one in VIEWS]
    for path, one in zip(paths, VIEWS):
        Image.fromarray(picture(one, squares)).save(path)
    return Scene("matches", VIEWS, (), None, "arbitrary", None, 0.1, 5.0, ()), paths


EDGE = SIZE_M / UNIT_M
SQUARES = {
    ("apriltag-36h11", 7): square((-0.35, -0.2, 2.2), (0.2, 0.3, 0.1), EDGE),
    ("apriltag-36h11", 12): square((0.45, 0.15, 2.6), (-0.3, 0.1, 0.4), EDGE),
}


def test_two_markers_tell_the_unit(tmp_path: Path) -> None:
    scene, paths = scene_with(tmp_path, SQUARES)
    found = markers.scale_by_markers(scene, paths, SIZE_M, None)
    assert found.metres == pytest.approx(UNIT_M, rel=0.01)
    assert found.relative_sd is not None and abs(found.metres / UNIT_M - 1) < 4 * found.relative_sd + 0.003
    used = [(one["dictionary"], one["id"], one["photos"]) for one in found.details["markers"] if one["used"]]
    assert used == [("apriltag-36h11", 7, 3), ("apriltag-36h11", 12, 3)]
    assert "2 markers (apriltag-36h11 7, apriltag-36h11 12) with edges of 0.16 m tell the scale" in found.notes[0]
    moved = scene.scaled(3.0, "arbitrary", None)  # the law: another unit, the same metres
    again = markers.scale_by_markers(moved, paths, SIZE_M, "apriltag-36h11")
    assert 3 * again.metres == pytest.approx(found.metres, rel=1e-9)


def test_no_marker_and_one_seen_once_are_told(tmp_path: Path) -> None:
    scene, paths = scene_with(tmp_path, {})
    with pytest.raises(JobFailed, match="no marker of 6x6 tells the scale: 0 were found, 0 in two placed photos"):
        markers.scale_by_markers(scene, paths, SIZE_M, "6x6")


def found_marker(number: int, length: float, sd: float = 0.003) -> markers.FoundMarker:
    return markers.FoundMarker("4x4", number, np.zeros((4, 3)), length, sd, 2)


def test_a_marker_of_another_size_is_left_out() -> None:
    found = markers.scale_from_lengths([found_marker(n, 1 + 0.002 * n) for n in range(4)] + [found_marker(9, 1.5)], 0.1)
    assert found.metres == pytest.approx(0.1 / 1.003, rel=1e-6)
    assert "not used: 4x4 9" in found.notes[1] and [one["used"] for one in found.details["markers"]] == [True] * 4 + [
        False
    ]
    with pytest.raises(JobFailed, match="not of one size"):
        markers.scale_from_lengths([found_marker(n, 1.3**n) for n in range(4)], 0.1)


def test_corners_that_do_not_agree_are_no_marker() -> None:
    corners = SQUARES["apriltag-36h11", 7]
    seen = {
        one.image: (one, one.camera.project(poses.transform_points(poses.inverse(one.world_from_cam), corners)))
        for one in VIEWS
    }
    exact = markers.locate_marker("4x4", 1, seen)
    assert exact is not None and exact.length == pytest.approx(EDGE, rel=1e-9) and exact.photos == 3
    wrong = seen | {"c.png": (VIEWS[2], seen["c.png"][1] + 40)}
    left = markers.locate_marker("4x4", 1, wrong)
    assert left is not None and left.photos == 2 and left.length == pytest.approx(EDGE, rel=1e-9)
    assert markers.locate_marker("4x4", 1, {"a.png": seen["a.png"]}) is None
    same_place = {"a": seen["a.png"], "b": seen["a.png"]}
    assert markers.locate_marker("4x4", 1, same_place) is None
    bent = {name: (one, pixels * [1.3, 1]) for name, (one, pixels) in seen.items()}
    assert markers.locate_marker("4x4", 1, bent) is None
