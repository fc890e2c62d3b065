"""A camera of any of COLMAP's models, brought to the pinhole camera of the same focal length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.geometry.cameras import HALF_PIXEL, transform_pixels
from dune_cli.io.orientation import UPRIGHT, stored_cam_from_cam, stored_from_upright, turned_size

if TYPE_CHECKING:
    import pycolmap


@dataclass(frozen=True)
class Camera:
    """`model` and `params` in COLMAP's words and pixels, of photos of `width` x `height` px.

    `orientation`: where these are a photo's stored pixels, how EXIF says they lie. All pixels given and returned, and
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
        """From K (3, 3) in pixels with centres at integers."""
        params = (K[0, 0], K[1, 1], K[0, 2] + HALF_PIXEL, K[1, 2] + HALF_PIXEL)
        return cls("PINHOLE", tuple(map(float, params)), width, height)

    @classmethod
    def radial(cls, K: np.ndarray, k1: float, width: int, height: int) -> Camera:
        """Like `pinhole`, with COLMAP's first radial term; both focal lengths may differ."""
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
        """(3, 3) of the pinhole camera that `undistort` leads to, in pixels with centres at integers."""
        turn = stored_cam_from_cam(self.orientation)[:3, :3]
        return np.linalg.inv(self._stored_from_upright) @ self._stored_K @ turn

    @cached_property
    def _stored_K(self) -> np.ndarray:
        matrix = self.colmap.calibration_matrix()
        matrix[:2, 2] -= HALF_PIXEL
        return matrix

    @cached_property
    def _stored_from_upright(self) -> np.ndarray:
        return stored_from_upright(*self.upright_size, self.orientation)

    @property
    def radial_term(self) -> float:
        """The first radial coefficient; 0 of models without one."""
        place = {"SIMPLE_RADIAL": 3, "RADIAL": 3, "OPENCV": 4, "FULL_OPENCV": 4}.get(self.model)
        return 0.0 if place is None else self.params[place]

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (M, 2) of the photo as the pinhole camera would see them; NaN where the model has no ray."""
        if len(pixels) == 0 or self.model in ("PINHOLE", "SIMPLE_PINHOLE"):
            return np.asarray(pixels, dtype=np.float64)
        rays = self.colmap.cam_from_img(transform_pixels(self._stored_from_upright, pixels) + HALF_PIXEL)
        straight = transform_pixels(self._stored_K, np.asarray(rays, dtype=np.float64))
        return transform_pixels(np.linalg.inv(self._stored_from_upright), straight)

    def resized(self, width: int, height: int) -> Camera:
        """The same lens for an upright photo that was resized."""
        width, height = turned_size(width, height, self.orientation)
        if (width, height) == (self.width, self.height):
            return self
        pycolmap = optional.import_pycolmap("camera models")
        camera = pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))
        camera.rescale(width, height)
        return Camera(self.model, tuple(map(float, camera.params)), width, height, self.orientation)
