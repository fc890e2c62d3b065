"""The earth's ellipsoid WGS84: geodetic, earth-centred and local coordinates. numpy, float64, any leading dimensions.

Geodetic coordinates are (latitude in degrees, longitude in degrees, height above the ellipsoid in metres).
Earth-centred ones are (x, y, z) in metres (EPSG:4978). Formulas: B. Hofmann-Wellenhof et al., "GNSS", 2008, section
8.2.
"""

from __future__ import annotations

import numpy as np

SEMI_MAJOR_M = 6_378_137.0
FLATTENING = 1 / 298.257223563
ECCENTRICITY_SQUARED = FLATTENING * (2 - FLATTENING)
ROUNDS = 6  # of the latitude's iteration, which gains more than two digits each up to 100 km of height


def earth_centred(geodetic: np.ndarray) -> np.ndarray:
    """(..., 3) earth-centred coordinates of geodetic ones (..., 3)."""
    latitude, longitude, height = _radians(geodetic)
    normal = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY_SQUARED * np.sin(latitude) ** 2)
    across = (normal + height) * np.cos(latitude)
    return np.stack(
        [
            across * np.cos(longitude),
            across * np.sin(longitude),
            (normal * (1 - ECCENTRICITY_SQUARED) + height) * np.sin(latitude),
        ],
        axis=-1,
    )


def geodetic(earth_centred: np.ndarray) -> np.ndarray:
    """(..., 3) geodetic coordinates of earth-centred ones (..., 3) within 100 km of the ellipsoid."""
    x, y, z = np.moveaxis(np.asarray(earth_centred, dtype=np.float64), -1, 0)
    across = np.hypot(x, y)
    latitude = np.arctan2(z, across * (1 - ECCENTRICITY_SQUARED))
    for _ in range(ROUNDS):
        sine = np.sin(latitude)
        normal = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY_SQUARED * sine**2)
        latitude = np.arctan2(z + ECCENTRICITY_SQUARED * normal * sine, across)
    sine, cosine = np.sin(latitude), np.cos(latitude)
    # along the normal: exact at the poles as well
    height = across * cosine + z * sine - SEMI_MAJOR_M * np.sqrt(1 - ECCENTRICITY_SQUARED * sine**2)
    return np.stack([np.degrees(latitude), np.degrees(np.arctan2(y, x)), height], axis=-1)


def enu_axes(origin: np.ndarray) -> np.ndarray:
    """(3, 3) the rows east, north and up at a geodetic `origin` (3,), in earth-centred axes."""
    latitude, longitude, _ = _radians(origin)
    sin_lat, cos_lat, sin_lon, cos_lon = np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)
    return np.array(
        [
            [-sin_lon, cos_lon, 0.0],
            [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
            [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
        ]
    )


def enu_from_geodetic(coordinates: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(..., 3) east, north, up in metres about a geodetic `origin` (3,), of geodetic `coordinates` (..., 3)."""
    return (earth_centred(coordinates) - earth_centred(origin)) @ enu_axes(origin).T


def geodetic_from_enu(points_enu: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(..., 3) the inverse of `enu_from_geodetic`."""
    return geodetic(np.asarray(points_enu, dtype=np.float64) @ enu_axes(origin) + earth_centred(origin))


def _radians(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    latitude, longitude, height = np.moveaxis(np.asarray(coordinates, dtype=np.float64), -1, 0)
    return np.radians(latitude), np.radians(longitude), height
