"""Worlds with coordinates on earth: projected and earth-centred systems (pyproj), local ones, and unknown ones.

Coordinates are x, y, z in metres: x east and y north in projected systems, whatever the order of their axes. Heights
are kept as they are given: no vertical datum is converted, because photos seldom tell theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.geometry import earth
from dune_cli.io.safe_read import shown

ENU = "enu"
WGS84_3D, EARTH_CENTRED = "EPSG:4979", "EPSG:4978"
OUTSIDE_DEG = 10.0  # of a system's area of use: neighbouring UTM zones are in use
LARGEST_STRETCH = 0.01  # of lengths by a projection: Web Mercator's are 1.4 times too long at 45 degrees
UPWARD = "x east, y north, z up"
LONGEST_NAME = 4000


class WorldFrame(Protocol):
    """A frame with metres. `name` for files and messages; `axes` in words; `z_up`: whether z points up; `wkt`: the
    system's definition, None for frames that have none."""

    name: str
    axes: str
    z_up: bool

    @property
    def wkt(self) -> str | None: ...

    def from_geodetic(self, geodetic: np.ndarray) -> np.ndarray:
        """(..., 3) x, y, z of latitudes and longitudes in degrees (WGS84) and heights."""

    def to_geodetic(self, points: np.ndarray) -> np.ndarray:
        """The inverse."""


@dataclass(frozen=True)
class EnuFrame:
    """East, north, up in metres about `origin` (3,): latitude, longitude, height."""

    origin: np.ndarray
    name: str = "ENU"
    axes: str = UPWARD
    z_up: bool = True

    @property
    def wkt(self) -> str | None:
        return None

    def from_geodetic(self, geodetic: np.ndarray) -> np.ndarray:
        return earth.enu_from_geodetic(geodetic, self.origin)

    def to_geodetic(self, points: np.ndarray) -> np.ndarray:
        return earth.geodetic_from_enu(points, self.origin)


@dataclass(frozen=True)
class NamelessFrame:
    """x, y, z in metres with z up, as a file has them without saying where on earth they are."""

    name: str
    axes: str = "those of the positions, z up"
    z_up: bool = True

    @property
    def wkt(self) -> str | None:
        return None

    def from_geodetic(self, geodetic: np.ndarray) -> np.ndarray:
        raise UserError(f"it is not known where on earth the coordinates {self.name} are; name them with --gps-crs")

    to_geodetic = from_geodetic


@dataclass(frozen=True)
class CrsFrame:
    """A projected or an earth-centred coordinate reference system. `crs`: pyproj.CRS, the horizontal part of compound
    ones."""

    name: str
    crs: Any

    @property
    def axes(self) -> str:
        return "earth-centred x, y, z" if self.crs.is_geocentric else UPWARD

    @property
    def z_up(self) -> bool:
        return not self.crs.is_geocentric

    @property
    def wkt(self) -> str | None:
        return self.crs.to_wkt()

    @cached_property
    def _from_wgs84(self) -> Any:
        return _transformer(WGS84_3D, self.crs, self.name)

    def from_geodetic(self, geodetic: np.ndarray) -> np.ndarray:
        latitude, longitude, height = np.moveaxis(np.asarray(geodetic, np.float64), -1, 0)
        x, y, z = self._from_wgs84.transform(longitude, latitude, height)
        return self._checked(np.stack([x, y, z if self.crs.is_geocentric else height], axis=-1))

    def to_geodetic(self, points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        longitude, latitude, height = self._from_wgs84.transform(x, y, z, direction="INVERSE")
        return self._checked(np.stack([latitude, longitude, height if self.crs.is_geocentric else z], axis=-1))

    def from_crs(self, points: np.ndarray, other: CrsFrame) -> np.ndarray:
        """x, y, z (..., 3) of points of another system. Between projected ones by the conversion of one to the other,
        which is more exact than those to and from WGS84 (GDA94 and GDA2020 are 1.8 m apart, and both called WGS84)."""
        if self.crs.is_geocentric or other.crs.is_geocentric:
            return self.from_geodetic(other.to_geodetic(points))
        x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        x, y = _transformer(other.crs, self.crs, self.name).transform(x, y)
        return self._checked(np.stack([x, y, z], axis=-1))

    def stretch(self, geodetic: np.ndarray) -> float:
        """The length of a metre on the ellipsoid at a place (3,), in the system's units."""
        if self.crs.is_geocentric:
            return 1.0
        pyproj = _pyproj()
        factors = pyproj.Proj(self.crs).get_factors(geodetic[1], geodetic[0])
        return float(np.sqrt(abs(factors.areal_scale)))

    def accuracy_m(self) -> float | None:
        """The stated accuracy of the conversion from WGS84, None where it is not known."""
        accuracy = self._from_wgs84.accuracy
        return None if accuracy is None or accuracy < 0 else float(accuracy)

    def _checked(self, coordinates: np.ndarray) -> np.ndarray:
        if not np.isfinite(coordinates).all():
            raise UserError(f"{self.name} has no coordinates for some of the positions, which lie too far outside it")
        return coordinates


def open_crs(name: str) -> CrsFrame:
    """The system that pyproj knows by `name`, such as EPSG:32632. PackageMissing without pyproj. UserError for unknown
    ones, and for those whose x, y, z are not metres to the east, the north and up: geographic ones, feet, axes to the
    south or the west. Earth-centred ones are allowed."""
    pyproj = _pyproj()
    try:
        if len(name) > LONGEST_NAME:
            raise ValueError(name)
        crs = pyproj.CRS.from_user_input(name)
    except (pyproj.exceptions.CRSError, ValueError, TypeError) as error:
        raise UserError(
            f"there is no coordinate system {shown(name)}; name one by its EPSG code, such as EPSG:32632 (UTM zone 32 "
            "north), or enu for a local one"
        ) from error
    label = _label(crs, name)
    if crs.is_compound:
        crs = crs.sub_crs_list[0]
    if crs.is_geographic:
        raise UserError(
            f"{label} is geographic, its coordinates are degrees, and a scene needs metres; name a projected system, "
            "such as EPSG:32632 (UTM zone 32 north), or enu for a local one"
        )
    if not (crs.is_projected or crs.is_geocentric):
        raise UserError(f"{label} is no place on earth; name a projected system such as EPSG:32632, or enu")
    units = {axis.unit_name for axis in crs.axis_info[:2]}
    if units != {"metre"}:
        raise UserError(f"{label} has the unit {', '.join(sorted(units))}, and a scene needs metres; name another one")
    directions = {axis.direction for axis in crs.axis_info[:2]}
    if crs.is_projected and directions != {"east", "north"}:
        raise UserError(
            f"{label} has axes to the {' and the '.join(sorted(directions))}; east and north are needed: name another"
        )
    return CrsFrame(label, crs)


def utm_name(geodetic: np.ndarray) -> str:
    """The EPSG code of the UTM zone of a place (3,), without the exceptions for Norway and Svalbard."""
    zone = int(np.clip((geodetic[1] + 180) // 6 + 1, 1, 60))
    return f"EPSG:{(32600 if geodetic[0] >= 0 else 32700) + zone}"


def check_stretch(frame: CrsFrame, geodetic: np.ndarray) -> None:
    """UserError for a projection that is made for another place than (3,), or does not keep lengths there."""
    area = frame.crs.area_of_use
    if area is not None and _outside_deg(area.bounds, geodetic) > OUTSIDE_DEG:
        raise UserError(
            f"{frame.name} is made for {shown(area.name.rstrip('.'), 60)}, and the photos are at latitude "
            f"{geodetic[0]:.4g} and longitude {geodetic[1]:.4g}; name a system of the region, such as "
            f"{utm_name(geodetic)} (UTM)"
        )
    stretch = frame.stretch(geodetic)
    if not abs(stretch - 1) <= LARGEST_STRETCH:  # and infinite ones
        raise UserError(
            f"a metre at the photos is {stretch:.3g} long in {frame.name}, which is made for another place or for web "
            f"maps; name a system of the region, such as {utm_name(geodetic)} (UTM)"
        )


def _outside_deg(bounds: tuple[float, float, float, float], geodetic: np.ndarray) -> float:
    """How far a place is outside of west, south, east, north; west is east of east where the area has the date line."""
    west, south, east, north = bounds
    longitude = (geodetic[1] - west) % 360
    width = (east - west) % 360 or 360.0
    beside = max(min(longitude - width, 360 - longitude), 0.0)
    return float(max(beside, south - geodetic[0], geodetic[0] - north))


def _pyproj() -> Any:
    module = optional.require("pyproj", "--crs", extra="geo")
    optional.require("pyproj.exceptions", "--crs", extra="geo")
    return module


def _transformer(source: Any, target: Any, name: str) -> Any:
    pyproj = _pyproj()
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise UserError(
            f"the positions cannot be converted to {name} ({str(error).splitlines()[0]}); name another"
        ) from error


def _label(crs: Any, name: str) -> str:
    authority = crs.to_authority()
    return ":".join(authority) if authority else shown(crs.name if len(name) > 40 else name)
