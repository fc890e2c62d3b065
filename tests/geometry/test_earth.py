"""Laws of the ellipsoid: conversions are each other's inverses, and local axes are orthonormal."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.geometry import earth


def places(count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.column_stack([rng.uniform(-90, 90, count), rng.uniform(-180, 180, count), rng.uniform(-1e4, 9e4, count)])


def test_earth_centred_and_back() -> None:
    given = np.concatenate([places(), [[90, 0, 10], [-90, 0, 0], [0, 180, 5]]])
    found = earth.geodetic(earth.earth_centred(given))
    np.testing.assert_allclose(found[:, :2], given[:, :2], atol=1e-11)
    np.testing.assert_allclose(found[:, 2], given[:, 2], atol=1e-7)


def test_known_places() -> None:
    """The semi-axes of WGS84."""
    at = earth.earth_centred(np.array([[0.0, 0, 0], [0, 90, 0], [90, 0, 0]]))
    np.testing.assert_allclose(at, [[6378137, 0, 0], [0, 6378137, 0], [0, 0, 6356752.314245]], atol=1e-6)


def test_local_coordinates_and_back() -> None:
    origin = np.array([48.1, 11.5, 520.0])
    points = np.random.default_rng(1).normal(size=(100, 3)) * 1000
    found = earth.enu_from_geodetic(earth.geodetic_from_enu(points, origin), origin)
    np.testing.assert_allclose(found, points, atol=1e-7)
    axes = earth.enu_axes(origin)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(axes) == pytest.approx(1)
    step = earth.enu_from_geodetic(origin + np.array([[1e-6, 0, 0], [0, 1e-6, 0], [0, 0, 0.1]]), origin)
    assert (np.diag(step[:, [1, 0, 2]]) > 0.07).all() and np.abs(step - np.diag(np.diag(step))).max() < 0.12
