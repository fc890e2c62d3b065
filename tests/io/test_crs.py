"""Coordinate systems: round trips, and the systems that a scene cannot be in."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.io import crs
from dune_cli.io.crs import EnuFrame, NamelessFrame, open_crs

pytest.importorskip("pyproj")
MUNICH = np.array([48.137, 11.575, 520.0])


@pytest.mark.parametrize(
    "name", ["EPSG:32632", "EPSG:25832", "EPSG:31468", "EPSG:2154", "EPSG:4978", "EPSG:25832+5783"]
)
def test_wgs84_and_back(name: str) -> None:
    frame = open_crs(name)
    given = MUNICH + np.random.default_rng(0).uniform(-1, 1, (50, 3)) * [0.05, 0.05, 100]
    there = frame.from_geodetic(given)
    back = frame.to_geodetic(there)
    np.testing.assert_allclose(back[:, :2], given[:, :2], atol=1e-9)  # a tenth of a millimetre
    np.testing.assert_allclose(back[:, 2], given[:, 2], atol=1e-6)
    assert frame.axes == ("earth-centred x, y, z" if name == "EPSG:4978" else "x east, y north, z up")
    if name != "EPSG:4978":
        north = frame.from_geodetic(MUNICH + np.array([0.001, 0, 0])) - frame.from_geodetic(MUNICH)
        assert np.hypot(*north[:2]) == pytest.approx(111.2, abs=0.2) and north[1] > 108 and north[2] == 0


def test_local_frames() -> None:
    frame = EnuFrame(MUNICH)
    points = np.random.default_rng(0).normal(size=(10, 3)) * 100
    np.testing.assert_allclose(frame.from_geodetic(frame.to_geodetic(points)), points, atol=1e-7)
    assert frame.wkt is None
    with pytest.raises(UserError, match="not known where on earth the coordinates that of"):
        NamelessFrame("that of a.csv").to_geodetic(points)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("EPSG:4326", "EPSG:4326 is geographic, its coordinates are degrees"),
        ("EPSG:123456", "there is no coordinate system EPSG:123456"),
        ("utm", "there is no coordinate system utm"),
        ("", "there is no coordinate system ''"),
        ("EPSG:" + "9" * 9999, "there is no coordinate system EPSG:999"),
        ("EPSG:2263", "has the unit US survey foot"),
        ("EPSG:2046", "has axes to the south and the west"),
        ("EPSG:5773", "is no place on earth"),
    ],
)
def test_systems_that_a_scene_cannot_be_in(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        open_crs(name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_projections_that_do_not_keep_lengths_there() -> None:
    with pytest.raises(UserError, match=r"a metre at the photos is 1\.5 long in EPSG:3857.*EPSG:32632 \(UTM\)"):
        crs.check_stretch(open_crs("EPSG:3857"), MUNICH)
    for name in ("EPSG:32632", "EPSG:32633", "EPSG:25832", "EPSG:4978"):
        crs.check_stretch(open_crs(name), MUNICH)
    assert crs.utm_name(np.array([-33.8, 151.2, 0])) == "EPSG:32756"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("EPSG:32701", MUNICH),  # the other side of the earth, where a metre is a metre again
        ("EPSG:32732", MUNICH),  # the southern hemisphere's zone
        ("EPSG:2193", np.array([48.1, 11.6, 0])),  # New Zealand, across the date line
        ("EPSG:32632", np.array([-33.8, 151.2, 0])),
    ],
)
def test_systems_of_another_region(name: str, place: np.ndarray) -> None:
    with pytest.raises(UserError, match=f"{name} is made for .*, and the photos are at latitude"):
        crs.check_stretch(open_crs(name), place)


def test_a_region_across_the_date_line() -> None:
    crs.check_stretch(open_crs("EPSG:2193"), np.array([-41.3, 174.8, 0]))
    crs.check_stretch(open_crs("EPSG:32701"), np.array([-13.8, 179.9, 0]))


def test_datums_that_wgs84_does_not_tell_apart() -> None:
    gda94, gda2020 = open_crs("EPSG:28356"), open_crs("EPSG:7856")
    sydney = np.array([[334450.0, 6250900.0, 100.0], [334500.0, 6250900.0, 110.0]])
    moved = gda2020.from_crs(sydney, gda94) - sydney
    np.testing.assert_allclose(moved, [[0.478, 1.415, 0.0]] * 2, atol=0.01)  # the plate's motion from 1994 to 2020
    np.testing.assert_allclose(gda94.from_crs(sydney + moved, gda2020), sydney, atol=1e-3)
    centred = open_crs("EPSG:4978")
    np.testing.assert_allclose(gda94.from_crs(centred.from_crs(sydney, gda94), centred), sydney, atol=1e-3)
