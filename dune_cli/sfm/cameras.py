"""Cameras: COLMAP's models with undistortion, and cameras that several photos share before they are calibrated.

All `K` and pixels have their centres at integers; COLMAP's half pixel is added only in parameters of its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import HALF_PIXEL, transform_pixels
from dune_cli.io.orientation import UPRIGHT, stored_cam_from_cam, stored_from_upright, turned_size
from dune_cli.io.photos import PhotoInfo

if TYPE_CHECKING:
    import pycolmap

SAME_SIZE_SHARE = 0.8  # of photos without a known focal length: then all photos of a size share a camera


@dataclass(frozen=True)
class Camera:
    """A camera of one of COLMAP's models. `model` and `params` as COLMAP has them, photos of `width` x `height` px.

    `orientation`: the EXIF orientation, where these are a photo's stored pixels. All pixels given and returned, and
    `K`, are those of the upright photo. ValueError for mirrored orientations.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int
    orientation: int = UPRIGHT

    def __post_init__(self) -> None:
        stored_cam_from_cam(self.orientation)

    @classmethod
    def pinhole(cls, K: np.ndarray, width: int, height: int) -> Camera:
        """From `K` (3, 3) without skew."""
        params = (K[0, 0], K[1, 1], K[0, 2] + HALF_PIXEL, K[1, 2] + HALF_PIXEL)
        return cls("PINHOLE", tuple(map(float, params)), width, height)

    @classmethod
    def radial(cls, K: np.ndarray, k1: float, width: int, height: int) -> Camera:
        """As `pinhole`, with COLMAP's first radial coefficient; the focal lengths may differ."""
        params = (K[0, 0], K[1, 1], K[0, 2] + HALF_PIXEL, K[1, 2] + HALF_PIXEL, k1, 0.0, 0.0, 0.0)
        return cls("OPENCV", tuple(map(float, params)), width, height)

    @cached_property
    def colmap(self) -> pycolmap.Camera:
        pycolmap = optional.import_pycolmap("camera models")
        return pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright photo."""
        return turned_size(self.width, self.height, self.orientation)

    @cached_property
    def K(self) -> np.ndarray:
        """(3, 3) of the pinhole camera that `undistort` maps to."""
        rotation = stored_cam_from_cam(self.orientation)[:3, :3]
        return np.linalg.inv(self._stored_from_upright) @ self._stored_K @ rotation

    @cached_property
    def _stored_K(self) -> np.ndarray:
        matrix = self.colmap.calibration_matrix()
        matrix[:2, 2] -= HALF_PIXEL
        return matrix

    @cached_property
    def _stored_from_upright(self) -> np.ndarray:
        return stored_from_upright(*self.upright_size, self.orientation)

    @property
    def radial_coefficient(self) -> float:
        """The first radial coefficient; 0 for models without one."""
        index = {"SIMPLE_RADIAL": 3, "RADIAL": 3, "OPENCV": 4, "FULL_OPENCV": 4}.get(self.model)
        return 0.0 if index is None else self.params[index]

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (M, 2) of the photo in the pinhole camera `K`; NaN where the model has no ray."""
        if len(pixels) == 0 or self.model in ("PINHOLE", "SIMPLE_PINHOLE"):
            return np.asarray(pixels, dtype=np.float64)
        rays = self.colmap.cam_from_img(transform_pixels(self._stored_from_upright, pixels) + HALF_PIXEL)
        stored = transform_pixels(self._stored_K, np.asarray(rays, dtype=np.float64))
        return transform_pixels(np.linalg.inv(self._stored_from_upright), stored)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the upright photo resized to `width` x `height` px."""
        width, height = turned_size(width, height, self.orientation)
        if (width, height) == (self.width, self.height):
            return self
        pycolmap = optional.import_pycolmap("camera models")
        camera = pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))
        camera.rescale(width, height)
        return Camera(self.model, tuple(map(float, camera.params)), width, height, self.orientation)


@dataclass(frozen=True)
class SharedCamera:
    """A camera that photos share, before calibration: their size and `K` (3, 3).

    `fixed`: K is kept. `prior`: its focal length is a good start. Neither: its focal length is a guess.
    """

    width: int
    height: int
    K: np.ndarray
    fixed: bool
    prior: bool

    def to_colmap(self) -> pycolmap.Camera:
        """PINHOLE where it is fixed, else SIMPLE_RADIAL with one focal length and no distortion to begin with."""
        pycolmap = optional.import_pycolmap("camera models")
        fx, fy, cx, cy = self.K[0, 0], self.K[1, 1], self.K[0, 2] + HALF_PIXEL, self.K[1, 2] + HALF_PIXEL
        if self.fixed:
            model, params = "PINHOLE", [fx, fy, cx, cy]
        else:
            model, params = "SIMPLE_RADIAL", [float(np.sqrt(fx * fy)), cx, cy, 0.0]
        camera = pycolmap.Camera(model=model, width=self.width, height=self.height, params=params)
        camera.has_prior_focal_length = self.fixed or self.prior
        return camera


@dataclass(frozen=True)
class PhotoCameras:
    """The cameras of photos: the `shared` ones, and of each photo the index of its own among them, `ids`."""

    shared: tuple[SharedCamera, ...]
    ids: tuple[int, ...]

    def of(self, photo: int) -> SharedCamera:
        return self.shared[self.ids[photo]]


def share_cameras(photos: Sequence[PhotoInfo], intrinsics: Sequence[tuple[np.ndarray, str]]) -> PhotoCameras:
    """The cameras of photos with `intrinsics` (K, source).

    Photos of one size with the same given or EXIF intrinsics share a camera. Of unknown focal length, photos of one
    size share a camera where most photos have one size (a video, one camera's folder); else each has its own (pictures
    of many people).
    """
    sizes = [(photo.width, photo.height) for photo in photos]
    most = max(sizes.count(size) for size in set(sizes)) / len(sizes)
    cameras: list[SharedCamera] = []
    index_of: dict[tuple[object, ...], int] = {}
    ids = []
    for index, (photo, (K, source)) in enumerate(zip(photos, intrinsics)):
        key: tuple[object, ...] = (photo.width, photo.height, source, tuple(K.ravel().tolist()))
        if source == "default" and most < SAME_SIZE_SHARE:
            key = (index,)
        if key not in index_of:
            index_of[key] = len(cameras)
            cameras.append(SharedCamera(photo.width, photo.height, K, source == "given", source == "exif"))
        ids.append(index_of[key])
    return PhotoCameras(tuple(cameras), tuple(ids))
