"""Pictures with more than 8 bits a channel as 8 bits: scaled by what they hold, and told in a note.

Files of 16 bits often hold fewer: a camera's 10, 12 or 14 bits, a thermal sensor's counts. Divided by 257 such a
picture is nearly black. Where the values fill a usual number of bits, that number is the scale, so that photos of one
camera are scaled alike. Where they would leave fewer than MIN_LEVELS grey levels, the middle 99 % of the values are
stretched, each photo by its own: matchers normalise contrast. The same file always gives the same picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError

BITS = (8, 10, 12, 14)  # that a file of 16 bits may hold
MIN_LEVELS = 32  # of 255 that the middle 99 % must span
MIDDLE = (0.5, 99.5)  # percentiles
FLOAT_MARGIN = 0.1  # of floats from 0 to 1: sharpening overshoots
OFFSET = 0.25  # floats whose darkest value is above this share of the brightest are no light (degrees, metres)
SAMPLES, PIECE = 2_000_000, 1_000_000
GAMMA = 2.2  # of light without bounds, for the screen


def to_8bit(values: np.ndarray, name: Path) -> np.ndarray:
    """values (H, W) or (H, W, 3), integers of 16 or 32 bits or floats -> uint8, all channels by the same scale.

    Integers: over 65535 as they are, or over the 8, 10, 12 or 14 bits that they fill, or stretched. Floats from 0 to 1
    times 255; without bounds, light from 0 to its 99.5th percentile with gamma 2.2, others stretched; NaN becomes
    black. A note says what was done where it is not the plain scale. UserError without any finite value.
    """
    if values.dtype.kind == "f":
        return _floats(values, name)
    return _integers(values, name)


def _integers(values: np.ndarray, name: Path) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    dark, bright = _middle(values)
    if low >= 0 and high <= 65535:
        for bits in (*BITS, 16):
            top = 2**bits - 1
            if high <= top:
                break
        if (bright - dark) * 255 >= MIN_LEVELS * top or low == high:
            if bits < 16 and low != high:
                _say(name, f"values from {low} to {high} are read as {bits} bits", "bits")
            top = 65535 if low == high else top
            return _scaled(values, 0, top)
    # no more than one level for a count
    bright = max(bright, dark + 255)
    _say(
        name,
        f"values from {low} to {high}: {dark:g} to {bright:g} (the middle 99 %) become black to white",
        "stretched",
    )
    return _scaled(values, dark, bright)


def _floats(values: np.ndarray, name: Path) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        raise UserError(f"{name} holds no finite value; save it again")
    if not finite.all():
        _say(name, f"{int((~finite).sum())} values that are not finite become black or white", "not finite")
        inner = values[finite]
        values = np.nan_to_num(values, nan=float(inner.min()), posinf=float(inner.max()), neginf=float(inner.min()))
    else:
        inner = values
    low, high = float(inner.min()), float(inner.max())
    dark, bright = _middle(inner)
    said = f"values from {low:.4g} to {high:.4g}"
    is_unit = low >= -FLOAT_MARGIN and high <= 1 + FLOAT_MARGIN
    if is_unit and (bright - dark >= MIN_LEVELS / 255 or low == high):
        return _scaled(values, 0, 1)
    if low >= 0 and high > 1 and high <= 65535 and bool((inner == np.round(inner)).all()):
        return _integers(values.astype(np.int64), name)
    if bright <= dark:
        dark, bright = low, high if high > low else low + 1
    if low >= 0 and dark <= OFFSET * bright:
        text = f"{said}: 0 to {bright:.4g} (the 99.5th percentile) become black to white, with gamma {GAMMA:g}"
        _say(name, text, "light")
        return _scaled(values, 0, bright, GAMMA)
    _say(name, f"{said}: {dark:.4g} to {bright:.4g} (the middle 99 %) become black to white", "stretched")
    return _scaled(values, dark, bright)


def _middle(values: np.ndarray) -> tuple[float, float]:
    step = max(1, round((values.size / SAMPLES) ** 0.5)) if values.ndim > 1 else max(1, values.size // SAMPLES)
    some = values[::step, ::step] if values.ndim > 1 else values[::step]
    dark, bright = np.percentile(some, MIDDLE)
    return float(dark), float(bright)


def _scaled(values: np.ndarray, dark: float, bright: float, gamma: float = 1.0) -> np.ndarray:
    """In pieces: 200 megapixels would take gigabytes as float64."""
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, PIECE // values[0].size)
    for first in range(0, len(values), rows):
        share = (values[first : first + rows].astype(np.float64) - dark) / (bright - dark)
        share = share.clip(0, 1)
        levels[first : first + rows] = np.round(255 * (share if gamma == 1 else share ** (1 / gamma)))
    return levels


def _say(name: Path, text: str, kind: str) -> None:
    console.note_once(f"{name}: {text}", kind=f"value range, {kind}")
