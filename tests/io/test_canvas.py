"""Pictures drawn by OpenCV's rasteriser are those of ours."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.io.canvas import Canvas
from dune_cli.io.rendering import rasterise

WIDTH, HEIGHT, NEAR = 100, 75, 0.2
K = np.array([[75.0, 0, 45], [0, 70, 40], [0, 0, 1]])


def canvas(by_opencv: bool) -> Canvas:
    drawn = Canvas(WIDTH, HEIGHT, K, NEAR, (250, 200, 150))
    if by_opencv and not drawn._by_opencv:
        pytest.skip("this OpenCV has no rasteriser")
    drawn._by_opencv = by_opencv
    return drawn


@pytest.mark.parametrize("by_opencv", [True, False])
@pytest.mark.parametrize("nearest", [0.5, -1.0])  # -1: triangles cross the near plane, or lie behind the camera
def test_triangles_are_drawn_as_rasterised(by_opencv: bool, nearest: float) -> None:
    rng = np.random.default_rng(0)
    vertices = rng.uniform([-2, -2, nearest], [2, 2, 4], (90, 3))
    faces, colors = np.arange(90).reshape(-1, 3), rng.integers(0, 256, (90, 3), np.uint8)
    raster = rasterise(vertices, faces, K, WIDTH, HEIGHT, NEAR)
    expected = np.empty((HEIGHT, WIDTH, 3))
    expected[:] = (250, 200, 150)
    expected[raster.covered] = raster.interpolate(colors.astype(float), faces)
    for parts in ([faces], [faces[:15], faces[15:]], [faces[15:], faces[:15]]):
        drawn = canvas(by_opencv)
        for part in parts:
            drawn.add_triangles(vertices, part, colors)
        assert np.abs(drawn.reduced(1) - expected).max() < 1
        assert np.abs(drawn.depth - raster.depth)[raster.covered].max() < 1e-4
        assert (drawn.depth[~raster.covered] > 0.5 * drawn.far).all()


def test_points_are_the_same_by_both_ways_and_at_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform([-3, -3, -1], [3, 3, 5], (3000, 3))
    colors = rng.integers(0, 256, (3000, 3), np.uint8)
    pictures = []
    for by_opencv, at_a_time in ((False, 500), (True, 5000), (True, 500)):
        monkeypatch.setattr("dune_cli.io.canvas.POINTS_AT_A_TIME", at_a_time)
        drawn = canvas(by_opencv)
        drawn.add_points(points, colors, 3)
        pictures.append(drawn.reduced(1))
    assert np.array_equal(pictures[1], pictures[2])
    assert (pictures[0] != pictures[1]).any(-1).sum() < 10  # points at nearly the same depth


def test_a_reduced_picture_is_the_mean_of_its_samples() -> None:
    drawn = Canvas(4, 2, K, NEAR)
    drawn.picture[:, :, 0] = np.arange(8).reshape(2, 4) * 4 / 255
    assert drawn.reduced(2)[..., 0].tolist() == [[10, 18]] and drawn.reduced(2)[0, 0, 1] == 255
