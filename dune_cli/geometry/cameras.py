"""The pinhole camera: intrinsics, projection and back-projection. OpenCV axes; pixel (0, 0) is a pixel's centre.

Arrays are numpy and computed in float64. `K` is (..., 3, 3) and broadcasts against the points' leading dimensions: one
camera (3, 3) goes with points of any shape (..., 3), a batch (B, 3, 3) with points (B, N, 3).
Formulas: R. Hartley and A. Zisserman, "Multiple View Geometry", 2nd ed., sections 6.1 and 6.2.
"""

from __future__ import annotations

import numpy as np

HALF_PIXEL = 0.5  # COLMAP and nerfstudio put (0.5, 0.5) at the centre of the top-left pixel, everything here (0, 0)


def K_from_focal(focal_px: float, width: int, height: int) -> np.ndarray:
    """(3, 3) intrinsics with square pixels and the principal point at the image's centre, ((W-1)/2, (H-1)/2)."""
    return np.array([[focal_px, 0.0, (width - 1) / 2], [0.0, focal_px, (height - 1) / 2], [0.0, 0.0, 1.0]])


def K_from_fov(fov_deg: float, width: int, height: int) -> np.ndarray:
    """(3, 3) intrinsics from the field of view across the long side, in degrees. ValueError outside (0, 180)."""
    if not 0 < fov_deg < 180:
        raise ValueError(f"a field of view lies between 0 and 180 degrees, not {fov_deg}")
    return K_from_focal(max(width, height) / 2 / np.tan(np.radians(fov_deg) / 2), width, height)


def fov_deg_from_K(K: np.ndarray, width: int, height: int) -> np.ndarray:
    """(...) field of view across the long side in degrees; the inverse of `K_from_fov`."""
    K = np.asarray(K, dtype=np.float64)
    focal_px = K[..., 0, 0] if width >= height else K[..., 1, 1]
    return np.degrees(2 * np.arctan(max(width, height) / 2 / focal_px))


def scale_intrinsics(K: np.ndarray, scale_x: float, scale_y: float | None = None) -> np.ndarray:
    """(..., 3, 3) intrinsics of the image resized by these factors (`scale_y` defaults to `scale_x`).

    Pixel centres are at integers, so a coordinate moves as u' = (u + 0.5) * scale - 0.5.
    """
    return resize_transform(scale_x, scale_y) @ np.asarray(K, dtype=np.float64)


def resize_transform(scale_x: float, scale_y: float | None = None) -> np.ndarray:
    """(3, 3) pixel transform `resized_from_original` of a resize, pixel centres at integers."""
    scale_y = scale_x if scale_y is None else scale_y
    return np.array([[scale_x, 0.0, (scale_x - 1) / 2], [0.0, scale_y, (scale_y - 1) / 2], [0.0, 0.0, 1.0]])


def pixel_grid(height: int, width: int) -> np.ndarray:
    """(H, W, 2) pixel coordinates (x, y) of an image, float64."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    return np.stack([x, y], axis=-1)


def transform_pixels(transform: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(..., 2) pixels after a (3, 3) pixel transform or homography."""
    transform, pixels = np.asarray(transform, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    transformed = pixels @ transform[:, :2].T + transform[:, 2]
    return transformed[..., :2] / transformed[..., 2:]


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(..., 2) pixels of points (..., 3) in the camera's frame. Points at z = 0 give inf or NaN, without a warning;
    points behind the camera give the pixel of their opposite ray: check z where that matters."""
    points, K = np.asarray(points, dtype=np.float64), np.asarray(K, dtype=np.float64)
    image = _rows(points, K)
    with np.errstate(divide="ignore", invalid="ignore"):
        return image[..., :2] / image[..., 2:]


def backproject(pixels: np.ndarray, depth: np.ndarray | float, K: np.ndarray) -> np.ndarray:
    """(..., 3) points in the camera's frame from pixels (..., 2) and their depth z (...), the inverse of `project`."""
    pixels = np.asarray(pixels, dtype=np.float64)
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
    rays = _rows(homogeneous, np.linalg.inv(np.asarray(K, dtype=np.float64)))
    return rays * np.asarray(depth, dtype=np.float64)[..., None]


def _rows(vectors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`matrix @ v` for every v of `vectors` (..., 3)."""
    if vectors.ndim == 1:
        return (vectors[None] @ np.swapaxes(matrix, -1, -2))[..., 0, :]
    return vectors @ np.swapaxes(matrix, -1, -2)


def quarter_turn(width: int, height: int, turns: int) -> np.ndarray:
    """(3, 3) pixels of a photo after `turns` quarter turns clockwise from those of the photo, `width` x `height` px: a
    quarter takes (x, y) to (height - 1 - y, x)."""
    matrix = np.eye(3)
    for _ in range(turns % 4):
        matrix = np.array([[0, -1, height - 1], [1, 0, 0], [0, 0, 1.0]]) @ matrix
        width, height = height, width
    return matrix


# The focal length that a point map implies.


def focal_from_point_map(
    points_cam: np.ndarray, pixels: np.ndarray, principal_point: np.ndarray, valid: np.ndarray, iterations: int = 50
) -> float | None:
    """Focal length in pixels (square pixels) of the camera that sees `points_cam` (..., 3) at `pixels` (..., 2).

    The start is the weighted median of every point's own focal, which is robust to half of the points being wrong. Then
    the sum of distances |pixel - principal_point - focal * (x, y) / z| over the points near it is minimised by
    Weiszfeld's iterations, as in S. Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024, section 3.3.
    `valid` (...): the points to use; those with z <= 0 are left out. None with fewer than 10 points, or where they give
    no positive focal.
    """
    points_cam, pixels = np.asarray(points_cam, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    use = valid & (points_cam[..., 2] > 0) & np.isfinite(points_cam).all(-1)
    slopes = points_cam[use][:, :2] / points_cam[use][:, 2:]
    offsets = pixels[use] - principal_point
    along, square = (slopes * offsets).sum(-1), (slopes**2).sum(-1)
    usable = square > 1e-18
    if np.count_nonzero(usable) < 10:
        return None
    own_focal = np.maximum(along[usable] / square[usable], 0)
    focal = _weighted_median(own_focal, np.linalg.norm(offsets[usable], axis=-1))
    distances = np.linalg.norm(offsets - focal * slopes, axis=-1)
    near = distances <= 4 * np.median(distances)
    for _ in range(iterations):
        weights = near / np.maximum(distances, 1e-6)
        previous, focal = focal, float((weights * along).sum() / max((weights * square).sum(), 1e-30))
        if abs(focal - previous) <= 1e-9 * abs(focal):
            break
        distances = np.linalg.norm(offsets - focal * slopes, axis=-1)
    return focal if np.isfinite(focal) and focal > 0 else None


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
