"""Files of `dune reconstruct --gps`: tables and geo.txt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dune_cli.io.positions import PositionTable, read_positions
from fuzz.harness import Sample

TABLES = (
    "photo,lat,lon,alt,sd_xy,sd_z\na.jpg,48.1,11.5,520,0.02,0.05\nleft/b c.jpg,48.2,11.6,521.5,,\nd.jpg,,,,,\n",
    "Name;Easting;Northing;Elevation\na.jpg;691000.5;5334000;520\nb.jpg;691010;5334001;521\n",
    "EPSG:32632\na.jpg 691000 5334000 520\nb.jpg 691001 5334001 521 10 -90 0 0.5 1.0\n",
    "+proj=longlat +datum=WGS84\na.jpg 11.5 48.1 520\nb.jpg 11.6 48.2 521\n",
)


def samples(folder: Path) -> Sequence[Sample]:
    return [Sample({"p.csv": text.encode()}, lambda case: read_positions(case / "p.csv"), _is_table) for text in TABLES]


def _is_table(table: PositionTable) -> None:
    assert table.positions
    for name, one in table.positions.items():
        assert name and all(value is not None and math.isfinite(value) for value in one.coordinates)
        assert not table.geodetic or (abs(one.coordinates[0]) <= 90 and abs(one.coordinates[1]) <= 180)
        assert one.sd_m is None or all(0 < sd < math.inf for sd in one.sd_m)
