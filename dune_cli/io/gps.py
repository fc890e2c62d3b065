"""Where and how a photo was taken, from its EXIF GPS tags and the XMP fields that drones write, every value checked.

EXIF 2.32, section 4.6.6 "GPS attribute information". XMP: DJI's namespace drone-dji (position, RTK state and standard
deviations, gimbal angles), and Pix4D's Camera (GPSXYAccuracy, GPSZAccuracy), which senseFly and Parrot write as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import DuneError
from dune_cli.geometry.poses import rotation_from_rotvec
from dune_cli.io import exif
from dune_cli.io.image_file import FILE_LIMIT_BYTES, header
from dune_cli.io.orientation import MIRRORED, stored_cam_from_cam
from dune_cli.io.safe_read import MIB, open_regular

GPS_IFD = 0x8825
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, ALTITUDE_REF, ALTITUDE = 1, 2, 3, 4, 5, 6
STATUS, DATUM, POSITIONING_ERROR = 9, 0x12, 0x1F
BELOW = (1, 3)  # altitude references: below sea level, below the ellipsoid (EXIF 3.0)
HEIGHTS_M = (-12_000.0, 60_000.0)
CIRCLE_68 = 1.515  # radius of a circle with 68 % of a normal distribution in two dimensions, in standard deviations
SD_M = (3.0, 3.0, 6.0)  # of a phone's or a drone's position without a statement of its own: east, north, up
SMALLEST_SD_M, LARGEST_SD_M = 0.001, 10_000.0
XMP_WITHIN_BYTES = MIB  # of a file's beginning
XMP_FIELD = re.compile(rb"\b(drone-dji|Camera):(\w+)(?:\s*=\s*[\"']([^\"'<>]{0,64})[\"']|>([^<]{0,64})<)")
SAME_PLACE_DEG = 0.01  # between a file's EXIF and its XMP position: else the EXIF one is taken
NED_FROM_ENU = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])  # its own inverse
BODY_FROM_CAM = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # body: x forward, y right, z down


@dataclass(frozen=True)
class GpsFix:
    """A position on WGS84. `height_m` as the file gives it: above the ellipsoid or the sea, which files seldom tell;
    None without one. `sd_m`: standard deviations east, north and up; `stated`: whether the file states them."""

    latitude_deg: float
    longitude_deg: float
    height_m: float | None
    sd_m: tuple[float, float, float] = SD_M
    stated: bool = False


@dataclass(frozen=True)
class Whereabouts:
    """A photo's `fix`, and `enu_from_cam` (3, 3), the rotation of its upright camera to east, north, up, from the
    gimbal's angles; None where the file has none."""

    fix: GpsFix | None = None
    enu_from_cam: np.ndarray | None = None


def read_whereabouts(path: str | Path) -> Whereabouts:
    """What a photo's file says; nothing for a file without such tags, with unusable ones, or that is no photo."""
    path = Path(path)
    try:
        with open_regular(path, "a photo", FILE_LIMIT_BYTES) as file:
            head = file.read(XMP_WITHIN_BYTES)
            file.seek(0)
            tags, orientation = header(path, file, lambda image: (_gps_tags(image), exif.stored_orientation(image)))
    except (DuneError, OSError):
        return Whereabouts()
    xmp = _xmp(head)
    fix = _with_xmp(_exif_fix(tags), xmp)
    rotation = _gimbal(xmp)
    if rotation is not None:
        rotation = None if orientation in MIRRORED else rotation @ stored_cam_from_cam(orientation)[:3, :3]
    return Whereabouts(fix, rotation)


def gimbal_rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """(3, 3) camera to east, north, up. Yaw is clockwise from north, pitch 0 at the horizon and -90 straight down, roll
    about the optical axis; they are applied in this order (DJI, "Payload SDK: gimbal")."""
    turns = ((0, 0, yaw_deg), (0, pitch_deg, 0), (roll_deg, 0, 0))
    yaw, pitch, roll = (rotation_from_rotvec(np.radians(np.array(turn, dtype=np.float64))) for turn in turns)
    return NED_FROM_ENU @ yaw @ pitch @ roll @ BODY_FROM_CAM


def _gps_tags(image: Any) -> dict[int, Any]:
    try:
        return dict(image.getexif().get_ifd(GPS_IFD))
    except Exception:  # a damaged block provokes anything from struct.error to AttributeError in Pillow
        return {}


def _exif_fix(tags: Mapping[int, Any]) -> GpsFix | None:
    """None without a position, and for one that the receiver calls void or that has another datum."""
    if _text(tags.get(STATUS)) == "V" or _text(tags.get(DATUM))[:3] not in ("", "WGS"):
        return None
    latitude = _degrees(tags.get(LATITUDE), _text(tags.get(LATITUDE_REF)), "NS", 90)
    longitude = _degrees(tags.get(LONGITUDE), _text(tags.get(LONGITUDE_REF)), "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None
    height = _number(tags.get(ALTITUDE))
    reference = tags.get(ALTITUDE_REF, 0)
    if height is not None and (reference[0] if isinstance(reference, bytes) and reference else reference) in BELOW:
        height = -height
    radius = _number(tags.get(POSITIONING_ERROR))
    if radius is None or not radius > 0:
        return GpsFix(latitude, longitude, _height(height))
    sd = _sd(radius / CIRCLE_68)
    return GpsFix(latitude, longitude, _height(height), (sd, sd, 2 * sd), True)


def _with_xmp(fix: GpsFix | None, xmp: Mapping[str, float]) -> GpsFix | None:
    """The fix with the digits and standard deviations that XMP has more of."""
    latitude = xmp.get("drone-dji:GpsLatitude")
    longitude = xmp.get("drone-dji:GpsLongitude", xmp.get("drone-dji:GpsLongtitude"))  # as old firmware spells it
    usable = latitude is not None and longitude is not None and abs(latitude) <= 90 and abs(longitude) <= 180
    if usable and (latitude or longitude):
        height = _height(xmp.get("drone-dji:AbsoluteAltitude"))
        if fix is None:
            fix = GpsFix(latitude, longitude, height)
        elif max(abs(latitude - fix.latitude_deg), abs(longitude - fix.longitude_deg)) < SAME_PLACE_DEG:
            height = fix.height_m if height is None else height
            fix = GpsFix(latitude, longitude, height, fix.sd_m, fix.stated)
    if fix is None:
        return None
    names = ("drone-dji:RtkStdLon", "drone-dji:RtkStdLat", "drone-dji:RtkStdHgt")
    sds = [xmp.get(name) for name in names]
    if None in sds or not all(sd > 0 for sd in sds):
        across, up = xmp.get("Camera:GPSXYAccuracy"), xmp.get("Camera:GPSZAccuracy")
        sds = [across, across, up if up else across and 2 * across]
    if not all(sd is not None and sd > 0 for sd in sds):
        return fix
    east, north, up = map(_sd, sds)
    return GpsFix(fix.latitude_deg, fix.longitude_deg, fix.height_m, (east, north, up), True)


def _gimbal(xmp: Mapping[str, float]) -> np.ndarray | None:
    angles = [xmp.get(f"drone-dji:Gimbal{name}Degree") for name in ("Yaw", "Pitch", "Roll")]
    if None in angles or not all(abs(angle) <= 360 for angle in angles) or not any(angles):
        return None
    return gimbal_rotation(*angles)


def _xmp(head: bytes) -> dict[str, float]:
    """The numbers among the fields of the two namespaces, by their names."""
    fields: dict[str, float] = {}
    for space, name, attribute, element in XMP_FIELD.findall(head):
        value = _number((attribute or element).decode("ascii", "replace").strip())
        if value is not None:
            fields.setdefault(f"{space.decode()}:{name.decode('ascii', 'replace')}", value)
    return fields


def _degrees(value: Any, reference: str, signs: str, most: float) -> float | None:
    """Degrees, minutes and seconds with their hemisphere as degrees."""
    try:
        parts = [_number(part) for part in value]
    except TypeError:
        return None
    if not 1 <= len(parts) <= 3 or None in parts or min(parts) < 0 or reference not in tuple(signs):
        return None
    degrees = sum(part / 60**power for power, part in enumerate(parts))
    return None if degrees > most else float(degrees if reference == signs[0] else -degrees)


def _height(value: float | None) -> float | None:
    return value if value is not None and HEIGHTS_M[0] <= value <= HEIGHTS_M[1] else None


def _sd(value: float) -> float:
    return min(max(value, SMALLEST_SD_M), LARGEST_SD_M)


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip(" \0").upper()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) else None
