"""Cameras, poses and points as a COLMAP model (text or binary), the input of most splatting and MVS tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.errors import JobFailed, PackageMissing, UserError
from dune_cli.io.atomic import atomic_directory
from dune_cli.io.mesh import Frustum, check_colors, check_points

if TYPE_CHECKING:
    import pycolmap

HALF_PIXEL = 0.5  # COLMAP puts (0.5, 0.5) at the centre of the top-left pixel, everything else here (0, 0)
MODEL_FILES = [
    f"{name}.{end}" for name in ("cameras", "images", "points3D", "rigs", "frames") for end in ("bin", "txt")
]

Observation = tuple[int, float, float]


def write_colmap(
    folder: str | Path,
    cameras: Sequence[Frustum],
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    tracks: Sequence[Sequence[Observation]] | None = None,
    binary: bool = True,
) -> None:
    """Writes a model of PINHOLE cameras, one an image, that pycolmap and COLMAP read back.

    A camera's `name` is its image's file name; its K is in pixels with centres at integers. `points` (M, 3) in the
    world with `colors` (M, 3) uint8 (grey without), and `tracks`: for each point the (camera index, x_px, y_px) that
    see it. A model that is in `folder` already is replaced, other files there stay. UserError for two images of one
    name, PackageMissing without pycolmap, JobFailed where the files cannot be written whole.
    """
    twice = [name for name, count in Counter(camera.name for camera in cameras).items() if count > 1]
    if twice:
        raise UserError(f"a COLMAP model needs different image names, got {twice[0]} twice; rename one of the files")
    points = np.empty((0, 3)) if points is None else points
    colors = np.full((len(points), 3), 128, np.uint8) if colors is None else colors
    tracks = [()] * len(points) if tracks is None else tracks
    check_points(points, "points")
    check_colors(colors, len(points), "points")
    if len(tracks) != len(points):
        raise ValueError(f"{len(tracks)} tracks for {len(points)} points")
    model = _model(cameras, points, colors, tracks)
    with atomic_directory(folder, replaces=MODEL_FILES) as temporary:
        if binary:
            model.write_binary(str(temporary))
        else:
            model.write_text(str(temporary))
        _check_written(model, temporary, folder)


def _model(
    cameras: Sequence[Frustum], points: np.ndarray, colors: np.ndarray, tracks: Sequence[Sequence[Observation]]
) -> pycolmap.Reconstruction:
    try:
        import pycolmap
    except ImportError as error:
        raise PackageMissing(f"a COLMAP model needs pycolmap ({error}): pip install 'pycolmap>=3.12'") from error

    elements = []
    keypoints: list[list[tuple[float, float]]] = [[] for _ in cameras]
    for track in tracks:
        elements.append(pycolmap.Track())
        for index, x_px, y_px in track:
            elements[-1].add_element(index + 1, len(keypoints[index]))
            keypoints[index].append((x_px + HALF_PIXEL, y_px + HALF_PIXEL))

    model = pycolmap.Reconstruction()
    for i, (camera, xy) in enumerate(zip(cameras, keypoints), 1):
        K = np.asarray(camera.K, np.float64)
        params = [K[0, 0], K[1, 1], K[0, 2] + HALF_PIXEL, K[1, 2] + HALF_PIXEL]
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(camera_id=i, model="PINHOLE", width=camera.width, height=camera.height, params=params)
        )
        model.add_image_with_trivial_frame(
            pycolmap.Image(image_id=i, camera_id=i, name=camera.name, keypoints=np.reshape(xy, (-1, 2)).astype(float)),
            pycolmap.Rigid3d(np.asarray(camera.world_from_cam, np.float64)[:3]).inverse(),
        )
    for point, color, track in zip(points.astype(np.float64), colors, elements):
        model.add_point3D(point, track, color)
    return model


def _check_written(model: pycolmap.Reconstruction, written: Path, folder: str | Path) -> None:
    """pycolmap does not notice a full disk; reading the files back does."""
    import pycolmap

    try:
        again = pycolmap.Reconstruction(str(written))
        whole = len(again.points3D) == len(model.points3D) and len(again.images) == len(model.images)
    except (ValueError, RuntimeError, MemoryError, IndexError):
        whole = False
    if not whole:
        raise JobFailed(f"the COLMAP model could not be written whole into {folder}: the disk is probably full")
