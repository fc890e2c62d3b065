"""LAS 1.4: points with colours, and with the coordinate system of a georeferenced scene (ASPRS, "LAS Specification 1.4
R15"). Written by laspy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import __version__, optional
from dune_cli.io.formats import SceneData
from dune_cli.io.outputs import atomic_path

CONTENT = ("points",)
PACKAGES = ("laspy",)
POINT_FORMAT = 7  # x, y, z and red, green, blue, 16 bits each
STEP_M = 1e-4  # of coordinates in metres
STEPS = 2e9  # that a coordinate has at most: 32 bits
LEVELS = 257  # 8-bit colours times this are 16-bit ones


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The points in the coordinates of the world; of a georeferenced scene in its coordinate system."""
    return write_las(path, scene, compress=False)


def write_las(path: Path, scene: SceneData, compress: bool) -> list[str]:
    """Writes LAS or, to `compress`, LAZ. Confidence and normals are extra dimensions, as CloudCompare names them."""
    laspy = optional.require("laspy", f"{path.suffix} files", extra="geo")
    assert scene.points is not None
    points = np.asarray(scene.points, np.float64)
    offset = np.zeros(3)
    for one in (scene.world_offset, scene.crs_offset):
        offset = offset if one is None else offset + one
    extent = float(np.ptp(points, axis=0).max(initial=0.0)) if len(points) else 0.0
    middle = np.rint(points.mean(axis=0)) if len(points) and extent < np.abs(points).max() else np.zeros(3)
    header = laspy.LasHeader(version="1.4", point_format=POINT_FORMAT)
    header.generating_software, header.system_identifier = f"dune {__version__}", "dune"
    header.creation_date = None  # the same scene gives the same bytes on every day
    header.scales, header.offsets = np.full(3, _step(extent, scene.crs_wkt is not None)), middle + offset
    if scene.crs_wkt is not None:
        pyproj = optional.require("pyproj", f"{path.suffix} files", extra="geo")
        header.add_crs(pyproj.CRS.from_wkt(scene.crs_wkt))
    extra = _extra_dimensions(scene)
    for name, values in extra.items():
        header.add_extra_dim(laspy.ExtraBytesParams(name=name, type=values.dtype))
    cloud = laspy.LasData(header)
    for column, axis in enumerate("xyz"):
        setattr(cloud, axis, points[:, column] + offset[column])
    if scene.colors is not None:
        for column, name in enumerate(("red", "green", "blue")):
            setattr(cloud, name, scene.colors[:, column].astype(np.uint16) * LEVELS)
    for name, values in extra.items():
        cloud[name] = values
    backend: dict[str, Any] = {"laz_backend": laspy.LazBackend.Lazrs} if compress else {}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        cloud.write(file, do_compress=compress, **backend)
    return ["X", "Y", "Z", *(["red", "green", "blue"] if scene.colors is not None else []), *extra]


def _step(extent: float, metres: bool) -> float:
    """A power of ten that coordinates are multiples of."""
    if extent == 0:
        return STEP_M
    step = STEP_M if metres else 10.0 ** np.floor(np.log10(1e-6 * extent))
    return float(max(step, 10.0 ** np.ceil(np.log10(extent / STEPS))))


def _extra_dimensions(scene: SceneData) -> dict[str, np.ndarray]:
    extra = {} if scene.confidence is None else {"confidence": np.asarray(scene.confidence, np.float32)}
    if scene.normals is not None:
        normals = np.asarray(scene.normals, np.float32)
        extra |= {f"Normal{axis}": normals[:, column] for column, axis in enumerate("XYZ")}
    return extra
