"""A pinhole camera from the rays of its pixels (docs/models/depth-anything-3.md, "Cameras"). numpy, float64."""

from __future__ import annotations

import numpy as np

from dune_cli.geometry.poses import from_rotation_translation

MIN_DEPTH = 1e-4  # a direction's z: rays nearer to the image plane do not count
DRAWS, DRAWN, CANDIDATES = 100, 8, 0.3  # rounds, rays a round, from this share of the most confident
TOLERANCE = 0.2  # of a direction's x/z and y/z
MOST_INLIERS = 8000


def camera_from_rays(
    rays: np.ndarray, confidence: np.ndarray, size: tuple[int, int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """rays (m, n, 6), direction (any length) and centre in the world; confidence (m, n); image of `size` (H, W) ->
    `world_from_cam` (4, 4) and K (3, 3), pixels measured from the image's corner.

    A homography from pixels to directions by RANSAC, seeded; its factors are rotation and intrinsics. As in the
    published code the second factor is lower triangular, which is exact only where the principal point is the centre.
    ValueError where fewer than eight rays can be used.
    """
    height, width = size
    rows, columns = rays.shape[:2]
    directions, centres = np.split(np.asarray(rays, dtype=np.float64).reshape(-1, 6), 2, axis=1)
    usable = np.isfinite(directions).all(-1) & (np.abs(directions[:, 2]) > MIN_DEPTH)
    weights = np.where(usable, np.asarray(confidence, dtype=np.float64).reshape(-1), 0.0)
    if np.count_nonzero(weights) < DRAWN:
        raise ValueError(f"{np.count_nonzero(weights)} rays point forward or backward; {DRAWN} are needed for a camera")
    y, x = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in (rows, columns)), indexing="ij")
    plane = np.stack([x, y], -1).reshape(-1, 2)
    at = np.flatnonzero(weights)
    centre = (weights[at, None] * centres[at]).sum(0) / weights.sum()
    slopes = directions[at, :2] / directions[at, 2:]
    homography = _robust_homography(plane[at], slopes, weights[at], np.random.default_rng(seed))
    if np.linalg.det(homography) < 0:
        homography = -homography
    rotation, lower = _ql(homography)
    lower /= lower[2, 2]
    K = np.array(
        [
            [width / (2 * lower[0, 0]), 0, (lower[2, 0] + 1) * width / 2],
            [0, height / (2 * lower[1, 1]), (lower[2, 1] + 1) * height / 2],
            [0, 0, 1],
        ]
    )
    return from_rotation_translation(rotation, centre), K


def _robust_homography(
    plane: np.ndarray, slopes: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(3, 3) the homography from `plane` (M, 2) to `slopes` (M, 2) that the most confident rays agree with."""
    order = np.argsort(-weights, kind="stable")[: max(DRAWN, int(CANDIDATES * len(weights)))]
    drawn = np.stack([rng.permutation(order)[:DRAWN] for _ in range(DRAWS)])
    fits = _homography(plane[drawn], slopes[drawn], weights[drawn])
    homogeneous = np.concatenate([plane, np.ones((len(plane), 1))], 1)
    best, inliers = -1.0, np.zeros(len(plane), bool)
    for fit in fits:
        with np.errstate(divide="ignore", invalid="ignore"):
            mapped = homogeneous @ fit.T
            near = np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - slopes, axis=1) < TOLERANCE
        if (score := float(weights[near].sum())) > best:
            best, inliers = score, near
    at = np.flatnonzero(inliers)
    if len(at) < 4:
        raise ValueError(f"only {len(at)} rays agree with one camera; 4 are needed")
    if len(at) > MOST_INLIERS:
        at = np.sort(rng.choice(at, MOST_INLIERS, replace=False))
    return _homography(plane[at], slopes[at], weights[at])


def _homography(plane: np.ndarray, slopes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(..., 3, 3) by the direct linear transform, rows weighted, last entry 1."""
    (x, y), (u, v), w = np.moveaxis(plane, -1, 0), np.moveaxis(slopes, -1, 0), np.sqrt(weights)
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = [
        np.stack([-x, -y, -one, zero, zero, zero, x * u, y * u, u], -1),
        np.stack([zero, zero, zero, -x, -y, -one, x * v, y * v, v], -1),
    ]
    system = np.concatenate([w[..., None] * part for part in rows], -2)
    solution = np.linalg.svd(np.swapaxes(system, -1, -2) @ system)[2][..., -1, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (solution / solution[..., 8:]).reshape(*solution.shape[:-1], 3, 3)


def _ql(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """matrix (3, 3) = Q · L: Q orthogonal, L lower triangular with a positive diagonal."""
    q, r = np.linalg.qr(matrix[:, ::-1])
    q, lower = q[:, ::-1], r[::-1, ::-1]
    signs = np.where(np.diag(lower) < 0, -1.0, 1.0)
    return q * signs, lower * signs[:, None]
