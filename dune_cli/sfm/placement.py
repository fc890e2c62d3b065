"""Where photos were taken on earth, out of a table or EXIF, and the frame that a scene of them is placed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.crs import CrsFrame, EnuFrame, WorldFrame, open_crs
from dune_cli.io.positions import read_positions
from dune_cli.sfm.georeference import CameraPositions, choose_frame, exif_positions, table_positions

ENU = "enu"
SAME_PLACE_M = 1e-3


def named_crs(name: str | None) -> CrsFrame | None:
    """The system of a name such as EPSG:32632; None for "enu" and without a name. UserError, PackageMissing."""
    return None if name is None or name.lower() == ENU else open_crs(name)


def find_positions(
    photos: Sequence[Path], table: str | Path | None, table_crs: str | None, crs: CrsFrame | None
) -> CameraPositions:
    """The positions of the photos in a table (in the system `table_crs`, else its own, else `crs`), or without one
    those of their EXIF and XMP. UserError for a table that is no use, and where fewer than three photos have one."""
    if table is not None:
        read = read_positions(str(table))
        own = open_crs(table_crs) if table_crs is not None else None
        if own is None and not read.geodetic and read.crs is None:
            own = crs
        return _apart(table_positions(read, photos, own), len(photos))
    positions = exif_positions(photos)
    if positions is None:
        raise UserError(
            f"fewer than three of the {len(photos)} photos have a GPS position with a height in their EXIF or XMP; "
            "give --gps FILE with positions, or leave --crs and --scale-from gps out"
        )
    return _apart(positions, len(photos))


def _apart(positions: CameraPositions, photos: int) -> CameraPositions:
    """The positions. UserError where all of them are the same place."""
    places = np.stack(list(positions.cartesian().values()))
    if np.ptp(places, axis=0).max() < SAME_PLACE_M:
        raise UserError(
            f"all {len(places)} positions of {photos} photos ({positions.source}) are one place, which tells no "
            "scale; give positions that differ, or leave --crs, --gps and --scale-from gps out"
        )
    return positions


def frame_of(name: str | None, positions: CameraPositions, crs: CrsFrame | None) -> WorldFrame:
    """The frame of a scene: `crs`, local east, north, up for "enu", or what the positions are in. UserError."""
    if name is not None and crs is None and not positions.geodetic:
        assert positions.frame is not None
        return EnuFrame(positions.frame.to_geodetic(positions.middle()))
    return choose_frame(positions, crs)
