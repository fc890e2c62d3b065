"""Photos with a lens, and panoramas, as a pinhole camera would have taken them, and maps of those back in the photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, project, transform_pixels
from dune_cli.io.preprocess import Prepared

WIDEST_DEG = 60.0  # from the optical axis: what a straightened photo shows at most
BORDER_SAMPLES = 64  # of each side of the photo
NOWHERE_PX = -1e4  # a pixel outside every image
WRAPPED_PX = 2  # of a panorama beside its seam, as far as interpolation reaches
ROWS = 256  # of an image whose pixels are computed at once
KEPT_PIXELS = 10_000_000  # of a photo: of larger ones the pixels in one another are computed again for the next photo


@dataclass(frozen=True)
class StraightPhoto:
    """The view of a photo's camera by the pinhole camera `K` (3, 3), whose image has `size` (width, height) in pixels;
    None: the photo's. `rotation` (3, 3): the pinhole camera's axes from those of the photo's camera; None: the same."""

    camera: Camera
    K: np.ndarray
    size: tuple[int, int] | None = None
    rotation: np.ndarray | None = None

    @property
    def width(self) -> int:
        return self.camera.width if self.size is None else self.size[0]

    @property
    def height(self) -> int:
        return self.camera.height if self.size is None else self.size[1]

    @classmethod
    def of(cls, camera: Camera) -> StraightPhoto:
        """The pinhole camera along the same axis that shows all the photo does, up to WIDEST_DEG from the axis, in the
        largest scale. That of the last camera is kept with its pixels, for photos and frames that have the same.

        UserError where the photo shows nothing within WIDEST_DEG.
        """
        return _kept(camera) if camera.width * camera.height <= KEPT_PIXELS else cls._of(camera)

    @classmethod
    def _of(cls, camera: Camera) -> StraightPhoto:
        x, y = np.linspace(0, camera.width - 1, BORDER_SAMPLES), np.linspace(0, camera.height - 1, BORDER_SAMPLES)
        rays = camera.unproject(np.stack(np.meshgrid(x, y), axis=-1)).reshape(-1, 3)
        with np.errstate(invalid="ignore"):
            rays = rays[rays[:, 2] >= np.cos(np.radians(WIDEST_DEG))]
        if len(rays) < 2:
            raise UserError(
                f"the lens {camera.model} shows nothing within {WIDEST_DEG:g} degrees of its axis; check --intrinsics"
            )
        plane = rays[:, :2] / rays[:, 2:]
        low, high = plane.min(0), plane.max(0)
        size = np.array([camera.width - 1, camera.height - 1])
        ratio = camera.K[1, 1] / camera.K[0, 0]
        focal_x = float(np.min(size / ((high - low) * np.array([1.0, ratio]))))
        focals = np.array([focal_x, focal_x * ratio])
        centre = size / 2 - focals * (low + high) / 2
        return cls(camera, np.array([[focals[0], 0, centre[0]], [0, focals[1], centre[1]], [0, 0, 1.0]]))

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """The photo `rgb` (H, W, 3) as the pinhole camera sees it; outside the photo its border goes on."""
        cv2 = optional.require("cv2", "undistorting photos")
        if not self.camera.is_panorama:
            return cv2.remap(rgb, *self._photo_pixels, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        around = np.concatenate([rgb[:, -WRAPPED_PX:], rgb, rgb[:, :WRAPPED_PX]], axis=1)
        x, y = self._photo_pixels
        return cv2.remap(around, x + WRAPPED_PX, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

    def mask(self, used: np.ndarray) -> np.ndarray:
        """A photo's mask (H, W) bool as the pinhole camera sees it, by the nearest pixel; False outside the photo."""
        cv2 = optional.require("cv2", "undistorting masks")
        bits = used.astype(np.uint8)
        return cv2.remap(bits, *self._photo_pixels, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT) > 0

    @property
    def _photo_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y (H, W) float32 in the photo of all pixels of the pinhole camera."""
        parts = []
        for row in range(0, self.height, ROWS):
            grid = pixel_grid(min(ROWS, self.height - row), self.width) + np.array([0.0, row])
            pixels = self.pixels_in_photo(grid)
            parts.append(np.where(np.isfinite(pixels), pixels, NOWHERE_PX).astype(np.float32))
        pixels = np.concatenate(parts)
        return pixels[..., 0], pixels[..., 1]

    def pixels_of(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the pinhole camera that show pixels (..., 2) of the photo; NaN outside its image."""
        rays = self._turned(self.camera.unproject(pixels))
        with np.errstate(all="ignore"):
            found = project(rays, self.K)
            edge = np.array([self.width, self.height]) - 0.5
            seen = (rays[..., 2] > 0) & (found >= -0.5).all(-1) & (found <= edge).all(-1)
        return np.where(seen[..., None], found, np.nan)

    def pixels_in_photo(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the photo that pixels (..., 2) of the pinhole camera show; NaN for none."""
        plane = transform_pixels(np.linalg.inv(self.K), np.asarray(pixels, dtype=np.float64))
        rays = np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1)
        return self.camera.project(rays if self.rotation is None else rays @ self.rotation)

    def _turned(self, rays: np.ndarray) -> np.ndarray:
        """Rays (..., 3) of the photo's camera in the axes of the pinhole camera."""
        return rays if self.rotation is None else rays @ self.rotation.T

    def map_in_photo(self, values: np.ndarray) -> np.ndarray:
        """A map (H, W) of the pinhole camera's image at the photo's pixels, float32, bilinear; NaN outside."""
        cv2 = optional.require("cv2", "undistorting photos")
        return cv2.remap(
            values.astype(np.float32), *self._own_pixels, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT, borderValue=float("nan"),
        )  # fmt: skip

    @property
    def _own_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y (H, W) float32 in the pinhole camera's image of all pixels of the photo."""
        rays = self._turned(self.camera.unproject(pixel_grid(self.camera.height, self.camera.width)))
        with np.errstate(all="ignore"):
            pixels = project(rays, self.K)
            seen = rays[..., 2] >= np.cos(np.radians(WIDEST_DEG))
        pixels = np.where(seen[..., None] & np.isfinite(pixels), pixels, NOWHERE_PX).astype(np.float32)
        # half a pixel of rounding at the border is not outside
        limits = np.array([self.width - 1, self.height - 1], dtype=np.float32)
        near = (pixels > -0.5) & (pixels < limits + 0.5)
        pixels = np.where(near, np.clip(pixels, 0, limits), pixels)
        return pixels[..., 0], pixels[..., 1]


class _KeptStraightPhoto(StraightPhoto):
    """One that computes once where its pixels and those of the photo are in one another."""

    @cached_property
    def _photo_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        return super()._photo_pixels

    @cached_property
    def _own_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        return super()._own_pixels


@lru_cache(maxsize=1)
def _kept(camera: Camera) -> StraightPhoto:
    return _KeptStraightPhoto._of(camera)


def prepared_photo(rgb: np.ndarray, camera: Camera, prepare: Callable[[np.ndarray], Prepared]) -> Prepared:
    """What `prepare` makes of a photo (H, W, 3); of one with a lens, of the view of `StraightPhoto.of`.

    `network_from_image` is from the pixels of the undistorted photo, those of the pinhole camera `camera.K`, which
    `Camera.undistort` gives; so K_network = network_from_image @ camera.K for every camera.
    """
    if camera.is_pinhole:
        return prepare(rgb)
    straight = StraightPhoto.of(camera)
    made = prepare(straight.image(rgb))
    return replace(made, network_from_image=made.network_from_image @ straight.K @ np.linalg.inv(camera.K))


def shown_in_photo(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """(...) bool: whether the photo shows pixels (..., 2) of the undistorted photo; without distortion it does."""
    if camera.is_pinhole:
        return np.ones(pixels.shape[:-1], bool)
    edge = np.array([camera.width, camera.height]) - 0.5
    in_photo = camera.distort(pixels)
    return ((in_photo >= -0.5) & (in_photo <= edge)).all(-1)


def undistort_image(rgb: np.ndarray, camera: Camera) -> np.ndarray:
    """The image (H, W, 3) of the pinhole camera `camera.K`, of the same size."""
    return rgb if camera.is_pinhole else StraightPhoto(camera, camera.K).image(rgb)
