"""Cameras of COLMAP's models: projection, unprojection, undistortion, resizing and turning. numpy in float64.

A point is projected in three steps. The ray meets a plane: z = 1 (perspective models), or the plane where the distance
from the centre is the angle from the optical axis in radians (fisheye models). There the lens distorts it, and focal
lengths and principal point make pixels of it. Pixels and `params` have their centres at integers; COLMAP's half pixel
is added and taken away by `from_colmap` and `colmap_params`.
Models: COLMAP, src/colmap/sensor/models.h (BSD). The polynomials are those of D. C. Brown, "Decentering distortion of
lenses" (1966), of OpenCV's calib3d and fisheye modules, and of J. Weng et al., "Camera calibration with distortion
models and accuracy evaluation" (1992: thin prism); FOV: F. Devernay and O. Faugeras (2001); DIVISION: A. Fitzgibbon
(2001); EUCM: B. Khomutenko et al. (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dune_cli.geometry.cameras import HALF_PIXEL, quarter_turn, transform_pixels


@dataclass(frozen=True)
class CameraModel:
    """`number`: COLMAP's. `parameters`: their names; the first `focals` are focal lengths, the next two the principal
    point. `fisheye`: the lens distorts the plane of angles. `shape` polynomial | fov | division | eucm | sphere."""

    number: int
    parameters: tuple[str, ...]
    focals: int
    fisheye: bool = False
    shape: str = "polynomial"


def _model(number: int, names: str, fisheye: bool = False, shape: str = "polynomial") -> CameraModel:
    parameters = tuple(names.split())
    return CameraModel(number, parameters, sum(name in ("f", "fx", "fy") for name in parameters), fisheye, shape)


MODELS = {
    "SIMPLE_PINHOLE": _model(0, "f cx cy"),
    "PINHOLE": _model(1, "fx fy cx cy"),
    "SIMPLE_RADIAL": _model(2, "f cx cy k1"),
    "RADIAL": _model(3, "f cx cy k1 k2"),
    "OPENCV": _model(4, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": _model(5, "fx fy cx cy k1 k2 k3 k4", fisheye=True),
    "FULL_OPENCV": _model(6, "fx fy cx cy k1 k2 p1 p2 k3 d1 d2 d3"),  # COLMAP and OpenCV call the last k4, k5, k6
    "FOV": _model(7, "fx fy cx cy omega", shape="fov"),
    "SIMPLE_RADIAL_FISHEYE": _model(8, "f cx cy k1", fisheye=True),
    "RADIAL_FISHEYE": _model(9, "f cx cy k1 k2", fisheye=True),
    "THIN_PRISM_FISHEYE": _model(10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", fisheye=True),
    "RAD_TAN_THIN_PRISM_FISHEYE": _model(11, "fx fy cx cy k1 k2 k3 k4 k5 k6 p2 p1 sx1 sx2 sy1 sy2", fisheye=True),
    "SIMPLE_DIVISION": _model(12, "f cx cy k", shape="division"),
    "DIVISION": _model(13, "fx fy cx cy k", shape="division"),
    "SIMPLE_FISHEYE": _model(14, "f cx cy", fisheye=True),
    "FISHEYE": _model(15, "fx fy cx cy", fisheye=True),
    "EUCM": _model(16, "fx fy cx cy alpha beta", shape="eucm"),
    "EQUIRECTANGULAR": _model(17, "width height", shape="sphere"),
}
SPHERE = "EQUIRECTANGULAR"
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
WIDEST_DEG = 88.0  # from the optical axis: beyond it a pinhole camera's pixels are too far out to be of use
STEEPEST_DEG = 89.5  # of perspective models
LIKE = 0.02  # of a focal length: two calibrations of one camera
SAMPLES = 4000  # of a radial profile
NEWTON_STEPS = 30
UNPROJECTED = 1e-10  # residual on the distorted plane below which a point counts as unprojected


@dataclass(frozen=True)
class _Polynomial:
    """The polynomial distortion: the plane times (1 + k1 r² + k2 r⁴ …) / (1 + d1 r² + …), plus the tangential terms
    p r² + 2 (p·x) x, plus the thin prism s r² + t r⁴. `after`: these two act on what the radial term gives."""

    k: tuple[float, ...]
    d: tuple[float, ...]
    p: tuple[float, float]
    s: tuple[float, float]
    t: tuple[float, float]
    after: bool

    def radius(self, r: np.ndarray) -> np.ndarray:
        """The distorted radius (...) without the tangential terms."""
        numerator, denominator = (_series(terms, r * r)[0] for terms in (self.k, self.d))
        return r * numerator / denominator

    def distort(self, plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distorted plane (..., 2) and its derivatives (..., 2, 2) by `plane` (..., 2)."""
        square = (plane**2).sum(-1)
        (above, above_slope), (below, below_slope) = _series(self.k, square), _series(self.d, square)
        factor = above / below
        slope = (above_slope - factor * below_slope) / below
        outer = plane[..., :, None] * plane[..., None, :]
        radial = plane * factor[..., None]
        by_radial = factor[..., None, None] * np.eye(2) + 2 * slope[..., None, None] * outer
        x = radial if self.after else plane
        tangential, by_tangential = self._tangential(x)
        return radial + tangential, by_radial + (by_tangential @ by_radial if self.after else by_tangential)

    def _tangential(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, s, t = np.array(self.p), np.array(self.s), np.array(self.t)
        square = (x**2).sum(-1)[..., None]
        along = (x @ p)[..., None]
        value = (p + s) * square + t * square**2 + 2 * along * x
        by_square = p + s + 2 * t * square  # (..., 2)
        derivatives = (
            2 * by_square[..., :, None] * x[..., None, :]
            + 2 * along[..., None] * np.eye(2)
            + 2 * x[..., :, None] * p[None, :]
        )
        return value, derivatives


def _series(terms: Sequence[float], square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 + terms[0] square + terms[1] square² …, and its derivative by `square`."""
    value, slope = np.zeros_like(square), np.zeros_like(square)
    for term in reversed(terms):
        slope = slope * square + value + term
        value = (value + term) * square
    return 1 + value, slope


@dataclass(frozen=True)
class Camera:
    """A camera of one of MODELS: its `params`, and the size of its images in pixels.

    ValueError for an unknown model, and another number of parameters than the model has.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"the camera model {self.model!r} is unknown; known: {', '.join(MODELS)}")
        if len(self.params) != len(self.kind.parameters):
            raise ValueError(f"{self.model} has {len(self.kind.parameters)} parameters, not {len(self.params)}")

    @classmethod
    def pinhole(cls, K: np.ndarray, width: int, height: int) -> Camera:
        """From `K` (3, 3) without skew."""
        return cls("PINHOLE", tuple(map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))), width, height)

    @classmethod
    def sphere(cls, width: int, height: int) -> Camera:
        """Of a panorama of the whole sphere of `width` x `height` px."""
        return cls(SPHERE, (float(width), float(height)), width, height)

    @classmethod
    def brown(cls, K: np.ndarray, distortion: Sequence[float], width: int, height: int) -> Camera:
        """From `K` (3, 3) without skew and k1, k2, p1, p2 (those that are left out are 0), as the simplest model that
        has them: PINHOLE, SIMPLE_RADIAL, RADIAL, or OPENCV."""
        k1, k2, p1, p2 = (*map(float, distortion), *[0.0] * (4 - len(distortion)))
        fx, fy, cx, cy = map(float, (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
        if not (k1 or k2 or p1 or p2):
            return cls.pinhole(K, width, height)
        if fx != fy or p1 or p2:
            return cls("OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2), width, height)
        if k2:
            return cls("RADIAL", (fx, cx, cy, k1, k2), width, height)
        return cls("SIMPLE_RADIAL", (fx, cx, cy, k1), width, height)

    @classmethod
    def from_colmap(cls, model: str, params: Sequence[float], width: int, height: int) -> Camera:
        """From parameters as COLMAP has them, with (0.5, 0.5) at the centre of the top-left pixel."""
        return cls(model, _shifted(model, params, -HALF_PIXEL), width, height)

    @property
    def colmap_params(self) -> tuple[float, ...]:
        """The parameters as COLMAP has them."""
        return _shifted(self.model, self.params, HALF_PIXEL)

    @property
    def kind(self) -> CameraModel:
        return MODELS[self.model]

    @property
    def is_pinhole(self) -> bool:
        """Whether it has no distortion."""
        return self.model in PINHOLES or (
            self.kind.shape == "polynomial" and not self.kind.fisheye and not any(self.distortion)
        )

    @property
    def is_panorama(self) -> bool:
        """Whether it is a sphere, which has no focal length."""
        return self.kind.shape == "sphere"

    @property
    def distortion(self) -> tuple[float, ...]:
        """The parameters after the principal point."""
        return self.params[self.kind.focals + 2 :]

    @cached_property
    def K(self) -> np.ndarray:
        """(3, 3) of the pinhole camera that `undistort` maps to. ValueError for a panorama."""
        if self.is_panorama:
            raise ValueError(f"a camera {self.model} has no focal length")
        focals = self.kind.focals
        fx, fy, (cx, cy) = self.params[0], self.params[focals - 1], self.params[focals : focals + 2]
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    @property
    def first_radial(self) -> float:
        """k1 of a perspective model; 0 for models without one."""
        return 0.0 if self.kind.fisheye else dict(zip(self.kind.parameters, self.params)).get("k1", 0.0)

    @cached_property
    def _polynomial(self) -> _Polynomial:
        terms = dict(zip(self.kind.parameters, self.params))

        def all_of(*names: str) -> tuple[float, ...]:
            return tuple(terms.get(name, 0.0) for name in names)

        after = self.model == "RAD_TAN_THIN_PRISM_FISHEYE"
        k = all_of(*(f"k{i}" for i in range(1, 7)))
        s, t = all_of("sx1", "sy1"), all_of("sx2", "sy2")
        return _Polynomial(_trimmed(k), _trimmed(all_of("d1", "d2", "d3")), all_of("p2", "p1"), s, t, after)

    @cached_property
    def _profile(self) -> tuple[np.ndarray, np.ndarray]:
        """Radii on the plane and the distorted radii, increasing, up to where the distortion folds back."""
        if self.kind.fisheye:
            radius = np.linspace(0, np.pi, SAMPLES)
        else:
            radius = np.tan(np.linspace(0, np.radians(STEEPEST_DEG), SAMPLES))
        with np.errstate(all="ignore"):
            distorted = self._polynomial.radius(radius)
            rises = np.diff(distorted) > 0
        end = int(np.argmin(rises)) if not rises.all() else len(rises)
        return radius[: end + 1], distorted[: end + 1]

    def project(self, points_cam: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of points (..., 3) in the camera's frame; NaN where the model sees none: behind the camera,
        and where its polynomial folds back."""
        points = np.asarray(points_cam, dtype=np.float64)
        if self.is_panorama:
            return self._project_to_sphere(points)
        with np.errstate(all="ignore"):
            distorted = self._distorted_plane(points)
        return distorted * np.diag(self.K)[:2] + self.K[:2, 2]

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 3) rays of length 1 of pixels (..., 2), the inverse of `project`; NaN where there is none."""
        pixels = np.asarray(pixels, dtype=np.float64)
        if self.is_panorama:
            return self._unproject_from_sphere(pixels)
        distorted = (pixels - self.K[:2, 2]) / np.diag(self.K)[:2]
        with np.errstate(all="ignore"):
            rays = self._rays(distorted)
            rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
        rays[~np.isfinite(rays).all(-1)] = np.nan
        return rays

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of the image in the pinhole camera `K`; NaN where the model has no ray, or one of more than
        WIDEST_DEG from the axis."""
        pixels = np.asarray(pixels, dtype=np.float64)
        if self.is_pinhole:
            return pixels
        rays = self.unproject(pixels)
        with np.errstate(all="ignore"):
            plane = rays[..., :2] / rays[..., 2:]
        plane[~(rays[..., 2] > np.cos(np.radians(WIDEST_DEG)))] = np.nan
        return plane * np.diag(self.K)[:2] + self.K[:2, 2]

    def distort(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `undistort`: where the pixels (..., 2) of the pinhole camera `K` are in the image."""
        pixels = np.asarray(pixels, dtype=np.float64)
        if self.is_pinhole:
            return pixels
        plane = (pixels - self.K[:2, 2]) / np.diag(self.K)[:2]
        return self.project(np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1))

    def undistorted_pixel_size(self, pixels: np.ndarray) -> np.ndarray:
        """(...) by which factor a small length at `pixels` (..., 2) grows by `undistort`, at most, along the radius."""
        if self.is_pinhole:
            return np.ones(np.shape(pixels)[:-1])
        offsets = np.asarray(pixels, dtype=np.float64) - self.K[:2, 2]
        length = np.linalg.norm(offsets, axis=-1, keepdims=True)
        outward = offsets / np.maximum(length, 1e-9)
        step = 0.25 * np.where(length > 1e-9, outward, (1.0, 0.0))
        moved = self.undistort(pixels + step) - self.undistort(pixels - step)
        return np.linalg.norm(moved, axis=-1) / 0.5

    def field_of_view_deg(self) -> float:
        """Twice the widest angle from the optical axis within the image, as the middles of its sides and its corners
        have it; 360 for a panorama."""
        if self.is_panorama:
            return 360.0
        x, y = (-HALF_PIXEL, (self.width - 1) / 2, self.width - HALF_PIXEL), (-HALF_PIXEL, self.height - HALF_PIXEL)
        border = np.array(
            [(u, v) for u in x for v in y] + [(x[0], (self.height - 1) / 2), (x[2], (self.height - 1) / 2)]
        )
        z = self.unproject(border)[:, 2]
        return float(np.degrees(2 * np.arccos(np.clip(np.nanmin(z), -1, 1)))) if np.isfinite(z).any() else 0.0

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the image resized to `width` x `height` px."""
        if (width, height) == (self.width, self.height):
            return self
        sx, sy = width / self.width, height / self.height
        if self.is_panorama:
            return Camera(self.model, (float(width), float(height)), width, height)
        focals = self.kind.focals
        by = [sx, sy] if focals == 2 else [(sx + sy) / 2]
        lengths = [focal * factor for focal, factor in zip(self.params, by)]
        centre = [(c + HALF_PIXEL) * factor - HALF_PIXEL for c, factor in zip(self.params[focals:], (sx, sy))]
        return Camera(self.model, (*lengths, *centre, *self.distortion), width, height)

    def turned(self, quarter_turns: int) -> Camera:
        """The camera of the image after quarter turns clockwise, of the same model: tangential and prism terms turn."""
        if quarter_turns % 4 == 0:
            return self
        if self.is_panorama:
            raise ValueError(f"a camera {self.model} cannot be turned about its axis")
        turn = quarter_turn(self.width, self.height, quarter_turns)
        terms = dict(zip(self.kind.parameters, self.params))
        if quarter_turns % 2 and "fx" in terms:
            terms["fx"], terms["fy"] = terms["fy"], terms["fx"]
        terms["cx"], terms["cy"] = map(float, transform_pixels(turn, np.array([terms["cx"], terms["cy"]])))
        for x, y in (("p2", "p1"), ("sx1", "sy1"), ("sx2", "sy2")):
            if x in terms:
                terms[x], terms[y] = map(float, turn[:2, :2] @ (terms[x], terms[y]) + 0.0)
        size = (self.height, self.width) if quarter_turns % 2 else (self.width, self.height)
        return Camera(self.model, tuple(terms.values()), *size)

    def with_focal(self, factor: float) -> Camera:
        """With its focal lengths times `factor`."""
        focals = self.kind.focals
        return replace(self, params=(*(f * factor for f in self.params[:focals]), *self.params[focals:]))

    def is_like(self, other: Camera) -> bool:
        """Whether another camera has distortion, and within LIKE the same size, focal lengths and principal point."""
        if other.is_pinhole or (self.width, self.height) != (other.width, other.height):
            return False
        return bool(np.abs(self.K - other.K).max() <= LIKE * other.K[0, 0])

    def with_lens_of(self, other: Camera) -> Camera:
        """This pinhole camera with the distortion of another one."""
        focals = (
            (self.K[0, 0], self.K[1, 1]) if other.kind.focals == 2 else (float(np.sqrt(self.K[0, 0] * self.K[1, 1])),)
        )
        params = (*focals, self.K[0, 2], self.K[1, 2], *other.distortion)
        return Camera(other.model, tuple(map(float, params)), self.width, self.height)

    def _distorted_plane(self, points: np.ndarray) -> np.ndarray:
        x, z = points[..., :2], points[..., 2:]
        if self.kind.shape == "eucm":
            alpha, beta = self.distortion
            depth = np.sqrt(beta * (x**2).sum(-1, keepdims=True) + z**2)
            w = alpha / (1 - alpha) if alpha <= 0.5 else (1 - alpha) / alpha
            return np.where(z > -w * depth, x / (alpha * depth + (1 - alpha) * z), np.nan)
        plane = self._angles(points) if self.kind.fisheye else np.where(z > 0, x / z, np.nan)
        radius = np.linalg.norm(plane, axis=-1, keepdims=True)
        if self.kind.shape == "fov":
            (omega,) = self.distortion
            if abs(omega) < 1e-9:
                return plane
            factor = np.arctan(2 * radius * np.tan(omega / 2)) / (omega * radius)
            return np.where(radius > 1e-12, plane * factor, plane * 2 * np.tan(omega / 2) / omega)
        if self.kind.shape == "division":
            (k,) = self.distortion
            return plane * 2 / (1 + np.sqrt(1 - 4 * k * radius**2))
        distorted, _ = self._polynomial.distort(plane)
        return np.where(radius <= self._profile[0][-1], distorted, np.nan)

    def _rays(self, distorted: np.ndarray) -> np.ndarray:
        """Rays (..., 3) of any length."""
        square = (distorted**2).sum(-1, keepdims=True)
        if self.kind.shape == "eucm":
            alpha, beta = self.distortion
            root = np.sqrt(1 - (2 * alpha - 1) * beta * square)
            z = (1 - beta * alpha**2 * square) / (alpha * root + 1 - alpha)
            return np.concatenate([distorted, z], axis=-1)
        if self.kind.shape == "fov":
            (omega,) = self.distortion
            radius = np.sqrt(square)
            if abs(omega) < 1e-9:
                return np.concatenate([distorted, np.ones_like(radius)], axis=-1)
            inside = np.abs(radius * omega) < np.pi / 2
            factor = np.tan(radius * omega) / (2 * np.tan(omega / 2) * radius)
            plane = distorted * np.where(radius > 1e-12, factor, omega / (2 * np.tan(omega / 2)))
            return np.concatenate([plane, np.where(inside, 1.0, np.nan)], axis=-1)
        if self.kind.shape == "division":
            (k,) = self.distortion
            below = 1 + k * square
            folded = k * square >= 1  # the radius comes back at k r² = 1
            return np.concatenate([distorted, np.where((below > 0) & ~folded, below, np.nan)], axis=-1)
        plane = self._undistorted_plane(distorted)
        if not self.kind.fisheye:
            return np.concatenate([plane, np.ones_like(square)], axis=-1)
        angle = np.linalg.norm(plane, axis=-1, keepdims=True)
        return np.concatenate([plane * np.sinc(angle / np.pi), np.cos(angle)], axis=-1)

    def _undistorted_plane(self, distorted: np.ndarray) -> np.ndarray:
        """The inverse of the polynomial by Newton's method, from the inverse of its radial profile; NaN without one."""
        radii, images = self._profile
        radius = np.linalg.norm(distorted, axis=-1, keepdims=True)
        start = np.interp(radius, images, radii)
        plane = distorted * np.where(radius > 1e-12, start / np.maximum(radius, 1e-12), 1.0)
        for _ in range(NEWTON_STEPS):
            value, derivatives = self._polynomial.distort(plane)
            residual = distorted - value
            if np.nanmax(np.abs(residual), initial=0.0) < 1e-15:
                break
            (a, b), (c, d) = np.moveaxis(derivatives, (-2, -1), (0, 1))
            determinant = a * d - b * c
            u, v = residual[..., 0], residual[..., 1]
            step = np.stack([d * u - b * v, a * v - c * u], axis=-1) / determinant[..., None]
            plane = plane + np.where(np.isfinite(step), step, 0.0)
            length = np.linalg.norm(plane, axis=-1, keepdims=True)
            plane = plane * np.minimum(1.0, radii[-1] / np.maximum(length, 1e-12))
        value, _ = self._polynomial.distort(plane)
        scale = np.maximum(1.0, radius)
        return np.where((np.abs(distorted - value) <= UNPROJECTED * scale).all(-1, keepdims=True), plane, np.nan)

    def _angles(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) the direction of each point in the image, as long as its angle from the axis is in radians."""
        across = np.linalg.norm(points[..., :2], axis=-1, keepdims=True)
        angle = np.arctan2(across, points[..., 2:])
        return points[..., :2] * np.where(across > 1e-300, angle / np.maximum(across, 1e-300), 0.0)

    def _project_to_sphere(self, points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points, -1, 0)
        across = np.arctan2(x, z) / (2 * np.pi) + 0.5
        down = np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5
        return np.stack([across * self.params[0], down * self.params[1]], axis=-1) - HALF_PIXEL

    def _unproject_from_sphere(self, pixels: np.ndarray) -> np.ndarray:
        share = (pixels + HALF_PIXEL) / self.params
        longitude, latitude = (share[..., 0] - 0.5) * 2 * np.pi, (share[..., 1] - 0.5) * np.pi
        level = np.cos(latitude)
        return np.stack([level * np.sin(longitude), np.sin(latitude), level * np.cos(longitude)], axis=-1)


def _shifted(model: str, params: Sequence[float], shift: float) -> tuple[float, ...]:
    focals = MODELS[model].focals if model in MODELS else 0
    values = [float(value) for value in params]
    if focals:
        values[focals : focals + 2] = [value + shift for value in values[focals : focals + 2]]
    return tuple(values)


def _trimmed(terms: Sequence[float]) -> tuple[float, ...]:
    """Without the zeros at the end."""
    last = max((index for index, term in enumerate(terms) if term), default=-1)
    return tuple(terms[: last + 1])
