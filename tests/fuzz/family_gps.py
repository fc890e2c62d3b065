"""GPS tags and XMP fields of photos."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.gps import Whereabouts, read_whereabouts
from fuzz.harness import Sample
from support.gps_photos import exif_block

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><d drone-dji:GpsLatitude="-33.856784" drone-dji:GpsLongitude="151.215297" '
    'drone-dji:AbsoluteAltitude="+41.5" drone-dji:RtkStdLon="0.01" drone-dji:RtkStdLat="0.01" '
    'drone-dji:RtkStdHgt="0.02" drone-dji:GimbalYawDegree="30.0" drone-dji:GimbalPitchDegree="-60.0" '
    'drone-dji:GimbalRollDegree="0.0"/></x:xmpmeta>'
)


def samples(folder: Path) -> Sequence[Sample]:
    found = []
    for xmp in ("", XMP):
        data = io.BytesIO()
        more = {"xmp": xmp.encode()} if xmp else {}
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(
            data, "JPEG", exif=exif_block((-33.856784, 151.215297, 41.5)), **more
        )
        found.append(Sample({"p.jpg": data.getvalue()}, lambda case: _read(case / "p.jpg"), _is_a_place))
    return found


def _read(path: Path) -> Whereabouts:
    """UserError for a photo without a position, as the command refuses it."""
    found = read_whereabouts(path)
    if found.fix is None:
        raise UserError("the photo has no GPS position")
    return found


def _is_a_place(found: Whereabouts) -> None:
    if found.fix is not None:
        fix = found.fix
        assert abs(fix.latitude_deg) <= 90 and abs(fix.longitude_deg) <= 180
        assert fix.height_m is None or math.isfinite(fix.height_m)
        assert all(0 < sd < 1e5 for sd in fix.sd_m)
    if found.enu_from_cam is not None:
        assert np.allclose(found.enu_from_cam @ found.enu_from_cam.T, np.eye(3), atol=1e-9)
