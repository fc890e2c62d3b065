"""Orientation and focal length from EXIF tags, every value checked."""

from __future__ import annotations

import math
from typing import Any

from dune_cli import console
from dune_cli.io import orientation as orientations

ORIENTATION, EXIF_IFD = 0x0112, 0x8769
FOCAL_LENGTH_MM, FOCAL_LENGTH_35MM = 0x920A, 0xA405
FOCAL_PLANE_X_RESOLUTION, FOCAL_PLANE_UNIT = 0xA20E, 0xA210
PIXEL_X, PIXEL_Y = 0xA002, 0xA003
UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0}  # inch, centimetre, millimetre (EXIF 2.32, tag 0xA210; inch where it is absent)
DIAGONAL_35MM = math.hypot(36.0, 24.0)
LONGEST_MM = 10_000.0


def read_tags(image: Any, name: object) -> dict[int, Any]:
    """The tags of a loaded Pillow image that dune uses; empty without an EXIF block or with a damaged one."""
    try:
        exif = image.getexif()
    except Exception as error:  # a damaged block provokes anything from struct.error to AttributeError in Pillow
        console.note(f"{name}: damaged EXIF block ignored ({type(error).__name__})")
        return {}
    return tags_of(exif, name)


def tags_of(exif: Any, name: object) -> dict[int, Any]:
    """The same tags of an EXIF block that Pillow has read."""
    try:
        return {ORIENTATION: exif.get(ORIENTATION), **exif.get_ifd(EXIF_IFD)}
    except Exception as error:  # a damaged block provokes anything from struct.error to AttributeError in Pillow
        console.note(f"{name}: damaged EXIF block ignored ({type(error).__name__})")
        return {}


def stored_orientation(image: Any) -> int:
    """The EXIF orientation, 1 to 8, of an image that is not decoded yet; 1 without a tag. (Pillow turns a TIFF when it
    decodes it and removes the tag.)"""
    if image.format == "PNG" and not any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        return orientations.UPRIGHT  # or Pillow would decode the image to look for a tag behind it
    try:
        return orientations.from_tag(image.getexif().get(ORIENTATION))
    except Exception:  # as in read_tags, which notes it
        return orientations.UPRIGHT


def focal_px(tags: dict[int, Any], width: int, height: int) -> float | None:
    """Focal length in pixels of an image of `width` x `height` pixels, upright or stored; None without usable tags.

    First the 35 mm equivalent (tag 0xA405), which CIPA DCG-001 defines by the diagonal angle of view:
    focal / 43.27 mm * the image's diagonal. (By the long side, focal / 36 mm * width, a 4:3 phone would come out 4 %
    shorter: iPhone 7, 3.99 mm, 1.22 um pixels, "28 mm": 3270 px true, 3261 by the diagonal, 3136 by the long side.)
    Then the focal length in mm (0x920A) with the sensor's resolution (0xA20E, 0xA210) at the recorded size (0xA002).
    An image whose aspect ratio is not the recorded one was cropped: its tags say nothing. Absurd values are ignored.
    """
    recorded = _number(tags.get(PIXEL_X)), _number(tags.get(PIXEL_Y))
    if None not in recorded and abs(max(recorded) / min(recorded) * min(width, height) / max(width, height) - 1) > 0.02:
        return None
    focal_35mm, focal_mm = _number(tags.get(FOCAL_LENGTH_35MM)), _number(tags.get(FOCAL_LENGTH_MM))
    if focal_35mm and focal_35mm <= LONGEST_MM:
        return _plausible(focal_35mm / DIAGONAL_35MM * math.hypot(width, height), width, height)
    per_unit = _number(tags.get(FOCAL_PLANE_X_RESOLUTION))
    unit_mm = UNIT_MM.get(tags.get(FOCAL_PLANE_UNIT, 2))
    if focal_mm and focal_mm <= LONGEST_MM and per_unit and unit_mm and None not in recorded:
        scale = max(width, height) / max(recorded)
        return _plausible(focal_mm * per_unit / unit_mm * scale, width, height)
    return None


def _number(value: Any) -> float | None:
    """A finite positive number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _plausible(focal: float, width: int, height: int) -> float | None:
    """None unless the field of view across the long side lies between about 0.2 and 160 degrees."""
    return focal if 0.09 <= focal / max(width, height) <= 300 else None
