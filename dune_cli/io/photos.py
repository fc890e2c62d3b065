"""Photos in: every file format, bit depth and orientation that people have, as 8-bit RGB, or one clear sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Photo:
    """A decoded photo: `rgb` (H, W, 3) uint8, EXIF orientation applied.

    `exif_focal_px` is the focal length in pixels of `rgb` from the EXIF tags, None where they do not say.
    """

    path: Path
    rgb: np.ndarray
    sha256: str
    exif_focal_px: float | None = None

    @property
    def width(self) -> int:
        return self.rgb.shape[1]

    @property
    def height(self) -> int:
        return self.rgb.shape[0]
