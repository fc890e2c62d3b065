"""Cameras that several photos share, before they are calibrated; and cameras as pycolmap has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.matchers.matcher import Matches

if TYPE_CHECKING:
    import pycolmap

SAME_SIZE_SHARE = 0.8  # of photos without a known focal length: then all photos of a size share a camera


@dataclass(frozen=True)
class SharedCamera:
    """A camera that photos share, before calibration.

    `fixed`: its focal length and principal point are kept. `prior`: its focal length is a good start. Neither: its
    focal length is a guess. `lens_known`: its distortion is kept as well; else `camera` has none, and it is estimated
    where the photos tell it.
    """

    camera: Camera
    fixed: bool
    prior: bool
    lens_known: bool

    @property
    def width(self) -> int:
        return self.camera.width

    @property
    def height(self) -> int:
        return self.camera.height

    @property
    def K(self) -> np.ndarray:
        """(3, 3) of its pinhole part."""
        return self.camera.K

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of the photo in the pinhole camera `K`, as far as the lens is known; NaN without a ray."""
        return self.camera.undistort(pixels)

    def to_colmap(self) -> pycolmap.Camera:
        """The known camera; PINHOLE where the focal length alone is known; else SIMPLE_RADIAL with one focal length and
        no distortion to begin with."""
        start = self.camera
        if not self.fixed:
            K = self.K
            params = (float(np.sqrt(K[0, 0] * K[1, 1])), K[0, 2], K[1, 2], 0.0)
            start = Camera("SIMPLE_RADIAL", params, self.width, self.height)
        camera = to_colmap(start)
        camera.has_prior_focal_length = self.fixed or self.prior
        return camera


def to_colmap(camera: Camera) -> pycolmap.Camera:
    """The camera as pycolmap has it."""
    pycolmap = optional.import_pycolmap("camera models")
    params = list(camera.colmap_params)
    return pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=params)


def from_colmap(camera: pycolmap.Camera) -> Camera:
    """The camera that pycolmap has."""
    return Camera.from_colmap(camera.model_name, camera.params, camera.width, camera.height)


@dataclass(frozen=True)
class PhotoCameras:
    """The cameras of photos: the `shared` ones, and of each photo the index of its own among them, `ids`; and the
    `rigs` that hold them."""

    shared: tuple[SharedCamera, ...]
    ids: tuple[int, ...]
    rigs: Rigs = NO_RIGS

    def of(self, photo: int) -> SharedCamera:
        return self.shared[self.ids[photo]]


def share_cameras(cameras: Sequence[PhotoCamera], rigs: Rigs = NO_RIGS) -> PhotoCameras:
    """The shared cameras of photos.

    Photos with the same given or EXIF camera share it. Of unknown focal length, photos of one size share a camera where
    most photos have one size (a video, one camera's folder); else each has its own (pictures of many people). Each
    sensor of a rig has a camera of its own, which its photos share. UserError where these have different sizes.
    """
    sizes = [(own.camera.width, own.camera.height) for own in cameras]
    alone = [size for index, size in enumerate(sizes) if index not in rigs.mounts]
    most = max((alone.count(size) for size in set(alone)), default=0) / max(len(alone), 1)
    shared: list[SharedCamera] = []
    index_of: dict[object, int] = {}
    ids = []
    for index, own in enumerate(cameras):
        key: object = index if own.source == "default" and most < SAME_SIZE_SHARE else own
        mount = rigs.mounts.get(index)
        if mount is not None:
            key = (mount.rig, mount.sensor)
        if key not in index_of:
            index_of[key] = len(shared)
            shared.append(SharedCamera(own.camera, own.source == "given", own.source == "exif", own.lens_known))
        ids.append(index_of[key])
        if mount is not None and (shared[ids[-1]].width, shared[ids[-1]].height) != sizes[index]:
            raise UserError(
                f"the photos of sensor {mount.sensor} of a rig have {shared[ids[-1]].width} x {shared[ids[-1]].height} "
                f"px and {sizes[index][0]} x {sizes[index][1]} px; a sensor of a rig takes photos of one size"
            )
    return PhotoCameras(tuple(shared), tuple(ids), rigs)


def undistort_matches(matches: Matches, camera1: Camera, camera2: Camera) -> tuple[Matches, np.ndarray]:
    """The matches at the pixels of the pinhole cameras `K`, without those that have no ray; and (M,) bool of those that
    are kept. Their pixel sizes grow as much as undistortion stretches the photo there, in the median."""
    if camera1.is_pinhole and camera2.is_pinhole:
        return matches, np.ones(len(matches.points1), dtype=bool)
    points1, points2 = camera1.undistort(matches.points1), camera2.undistort(matches.points2)
    seen = np.isfinite(np.concatenate([points1, points2], axis=1)).all(-1)
    stretches = [
        max(1.0, float(np.nanmedian(camera.undistorted_pixel_size(points[seen])))) if seen.any() else 1.0
        for camera, points in ((camera1, matches.points1), (camera2, matches.points2))
    ]
    kept = replace(
        matches,
        points1=points1[seen],
        points2=points2[seen],
        scores=matches.scores[seen],
        pixel_size1=matches.pixel_size1 * stretches[0],
        pixel_size2=matches.pixel_size2 * stretches[1],
    )
    return kept, seen
