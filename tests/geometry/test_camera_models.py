"""Camera models: projection and unprojection are inverses over the whole image, and pycolmap and OpenCV mean the same;
turned, resized and undistorted cameras see what the image shows."""

from __future__ import annotations

import cv2
import numpy as np
import pycolmap
import pytest

from dune_cli.geometry.camera_models import MODELS, Camera
from dune_cli.geometry.cameras import quarter_turn, resize_transform, transform_pixels

WIDTH, HEIGHT = 640, 480
FOCALS, CENTRE = (320.0, 325.0), (322.0, 236.0)
DISTORTIONS = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (-0.09,),
    "RADIAL": (-0.2, 0.05),
    "OPENCV": (-0.28, 0.07, 0.001, -0.001),
    "OPENCV_FISHEYE": (-0.02, 0.005, -0.001, 0.0002),
    "FULL_OPENCV": (-0.2, 0.05, 0.001, -0.002, 0.01, 0.05, 0.01, 0.002),
    "FOV": (0.9,),
    "SIMPLE_RADIAL_FISHEYE": (-0.03,),
    "RADIAL_FISHEYE": (-0.03, 0.003),
    "THIN_PRISM_FISHEYE": (-0.02, 0.003, 0.001, -0.0007, 0.0005, -0.0001, 0.002, -0.001),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        -0.02, 0.003, 0.001, -0.0007, 0.0002, -0.00003, 0.001, -0.002, 0.001, 0.0005, -0.001, 0.0002,
    ),
    "SIMPLE_DIVISION": (-0.15,),
    "DIVISION": (-0.15,),
    "SIMPLE_FISHEYE": (),
    "FISHEYE": (),
    "EUCM": (0.6, 1.1),
}  # fmt: skip
WHOLE_IMAGE = np.stack(np.meshgrid(np.linspace(-0.5, WIDTH - 0.5, 33), np.linspace(-0.5, HEIGHT - 0.5, 25)), -1)


def camera_of(model: str) -> Camera:
    return Camera(model, (*FOCALS[: MODELS[model].focals], *CENTRE, *DISTORTIONS[model]), WIDTH, HEIGHT)


models = pytest.mark.parametrize("model", list(DISTORTIONS))


def test_every_model_with_a_focal_length_is_here() -> None:
    assert set(DISTORTIONS) == {name for name, kind in MODELS.items() if kind.focals}
    for name, kind in MODELS.items():
        of_colmap = pycolmap.Camera.create_from_model_name(1, name, 500.0, WIDTH, HEIGHT)
        assert int(of_colmap.model) == kind.number and len(of_colmap.params) == len(kind.parameters)


@models
def test_projection_and_unprojection_are_inverses_over_the_image(model: str) -> None:
    camera = camera_of(model)
    rays = camera.unproject(WHOLE_IMAGE)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(camera.project(rays), WHOLE_IMAGE, atol=1e-6)
    depths = np.random.default_rng(0).uniform(0.1, 9, (*rays.shape[:-1], 1))
    again = camera.unproject(camera.project(rays * depths))
    np.testing.assert_allclose(again, rays, atol=1e-9)


@models
def test_pycolmap_means_the_same(model: str) -> None:
    camera = camera_of(model)
    params = list(camera.colmap_params)
    theirs = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)
    rays = camera.unproject(WHOLE_IMAGE).reshape(-1, 3)
    np.testing.assert_allclose(theirs.img_from_cam(5 * rays) - 0.5, WHOLE_IMAGE.reshape(-1, 2), atol=1e-6)
    assert Camera.from_colmap(model, params, WIDTH, HEIGHT) == camera


@pytest.mark.parametrize("model", ["OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE"])
def test_opencv_means_the_same(model: str) -> None:
    camera = camera_of(model)
    points = camera.unproject(WHOLE_IMAGE).reshape(-1, 1, 3)
    terms, nothing = np.array(camera.distortion), np.zeros(3)
    if model == "OPENCV_FISHEYE":
        pixels, _ = cv2.fisheye.projectPoints(points, nothing, nothing, camera.K, terms)
    else:
        pixels, _ = cv2.projectPoints(points, nothing, nothing, camera.K, terms)
    np.testing.assert_allclose(pixels.reshape(WHOLE_IMAGE.shape), WHOLE_IMAGE, atol=1e-6)


def test_a_sphere_is_one() -> None:
    camera = Camera("EQUIRECTANGULAR", (640.0, 320.0), 640, 320)
    pixels = np.stack(np.meshgrid(np.arange(640.0), np.arange(320.0)), -1)
    rays = camera.unproject(pixels)
    np.testing.assert_allclose(camera.project(rays), pixels, atol=1e-9)
    theirs = pycolmap.Camera(model="EQUIRECTANGULAR", width=640, height=320, params=[640, 320])
    np.testing.assert_allclose(theirs.img_from_cam(rays.reshape(-1, 3)) - 0.5, pixels.reshape(-1, 2), atol=1e-6)
    assert camera.field_of_view_deg() == 360
    with pytest.raises(ValueError, match="no focal length"):
        _ = camera.K


@models
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_camera_sees_the_turned_image(model: str, turns: int) -> None:
    camera = camera_of(model)
    turn = quarter_turn(WIDTH, HEIGHT, turns)
    about_axis = np.eye(3)
    about_axis[:2, :2] = turn[:2, :2]
    turned = camera.turned(turns)
    rays = camera.unproject(WHOLE_IMAGE) @ about_axis.T
    np.testing.assert_allclose(turned.project(rays), transform_pixels(turn, WHOLE_IMAGE), atol=1e-6)
    np.testing.assert_allclose(turned.turned(-turns).params, camera.params, atol=1e-9)


@models
def test_a_resized_camera_sees_the_resized_image(model: str) -> None:
    camera = camera_of(model)
    smaller = camera.resized(WIDTH // 4, HEIGHT // 4)
    expected = transform_pixels(resize_transform(0.25), WHOLE_IMAGE)
    np.testing.assert_allclose(smaller.project(camera.unproject(WHOLE_IMAGE)), expected, atol=1e-9)


@models
def test_undistortion_is_the_pinhole_camera(model: str) -> None:
    camera = camera_of(model)
    straight = camera.undistort(WHOLE_IMAGE)
    rays = camera.unproject(WHOLE_IMAGE)
    homogeneous = rays @ camera.K.T
    np.testing.assert_allclose(straight, homogeneous[..., :2] / homogeneous[..., 2:], atol=1e-6)
    np.testing.assert_allclose(camera.distort(straight), WHOLE_IMAGE, atol=1e-6)
    assert camera.is_pinhole == ("PINHOLE" in model)


def test_where_the_polynomial_folds_back_nothing_is_seen() -> None:
    camera = Camera("SIMPLE_RADIAL", (500.0, 319.5, 239.5, -0.1), WIDTH, HEIGHT)
    assert np.isnan(camera.undistort(np.array([4000.0, 239.5]))).all()
    far = np.array([5.0, 0.0, 1.0])  # its distorted radius would be that of a point within the image
    assert np.isnan(camera.project(far)).all()
    assert np.isnan(camera.project(np.array([0.1, 0.0, -1.0]))).all()


def test_a_fisheye_sees_sideways_and_backwards() -> None:
    camera = Camera("FISHEYE", (100.0, 100.0, 319.5, 239.5), WIDTH, HEIGHT)
    ray = camera.unproject(np.array([319.5 + 100 * np.radians(120), 239.5]))
    np.testing.assert_allclose(ray, [np.sin(np.radians(120)), 0, np.cos(np.radians(120))], atol=1e-9)
    assert np.isnan(camera.undistort(np.array([319.5 + 100 * np.radians(95), 239.5]))).all()
    assert camera.field_of_view_deg() > 250


def test_the_simplest_model_holds_the_terms() -> None:
    K = np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])
    wide = K.copy()
    wide[1, 1] = 510
    found = [Camera.brown(matrix, terms, 640, 480).model for matrix, terms in (
        (K, []), (K, [0.1]), (K, [0.1, 0.01]), (K, [0.1, 0.01, 0.001]), (wide, [0.1]),
    )]  # fmt: skip
    assert found == ["PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV"]


def test_what_is_no_camera() -> None:
    with pytest.raises(ValueError, match="unknown"):
        Camera("LYTRO", (1.0,), 10, 10)
    with pytest.raises(ValueError, match="4 parameters, not 3"):
        Camera("PINHOLE", (1.0, 2.0, 3.0), 10, 10)
