"""Photos of the ray-cast scene with GPS tags, as if the room were a town 40 times its size, and tables of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from dune_cli.geometry import earth
from dune_cli.io import gps
from support import many_photos

ORIGIN = np.array([48.137, 11.575, 520.0])
METRES = 40.0  # a unit of the room
ENU_FROM_ROOM = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # the first camera looks north


def enu(index: int) -> np.ndarray:
    """(3,) east, north, up in metres about ORIGIN of the camera at a place."""
    return METRES * ENU_FROM_ROOM @ many_photos.arc(index)[:3, 3]


def geodetic(index: int) -> np.ndarray:
    """(3,) latitude, longitude, height of the camera at a place."""
    return earth.geodetic_from_enu(enu(index), ORIGIN)


def exif_block(place: Sequence[float], more: Mapping[int, object] | None = None) -> Image.Exif:
    """EXIF with the GPS tags of (latitude, longitude, height), exact to a tenth of a millimetre."""
    latitude, longitude, height = place
    block = Image.Exif()
    block[gps.GPS_IFD] = {
        gps.LATITUDE_REF: "N" if latitude >= 0 else "S",
        gps.LATITUDE: _sexagesimal(abs(latitude)),
        gps.LONGITUDE_REF: "E" if longitude >= 0 else "W",
        gps.LONGITUDE: _sexagesimal(abs(longitude)),
        gps.ALTITUDE_REF: b"\0" if height >= 0 else b"\1",
        gps.ALTITUDE: IFDRational(round(abs(height) * 10_000), 10_000),
        **(more or {}),
    }
    return block


def write(folder: Path, places: Sequence[int], found: Mapping[int, np.ndarray] | None = None) -> list[Path]:
    """The pictures as p0.jpg, ...; with the GPS tags of their places, or of `found`, where a place has any there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{index}.jpg" for index in places]
    for path, index in zip(paths, places):
        tags = {"exif": exif_block(geodetic(index))} if found is None else {}
        if found is not None and index in found:
            tags = {"exif": exif_block(found[index])}
        Image.fromarray(many_photos.picture(index)).save(path, quality=95, **tags)
    return paths


def table(path: Path, places: Mapping[int, Sequence[float]], columns: str = "photo,lat,lon,alt") -> Path:
    """A table of positions by place."""
    rows = [",".join([f"p{index}.jpg", *(f"{value:.10f}" for value in place)]) for index, place in places.items()]
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def _sexagesimal(degrees: float) -> tuple[IFDRational, ...]:
    whole = int(degrees)
    minutes = int(60 * (degrees - whole))
    seconds = Fraction(3600 * degrees - 3600 * whole - 60 * minutes).limit_denominator(10_000_000)
    return IFDRational(whole, 1), IFDRational(minutes, 1), IFDRational(seconds.numerator, seconds.denominator)
