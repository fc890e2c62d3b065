"""The similarity between cameras of a scene and measured positions of them, such as those of GPS, some of them wrong.

A least median of squares over triples of positions (P. Rousseeuw and A. Leroy, "Robust Regression and Outlier
Detection", 1987, chapter 5) finds the positions that agree. Weighted least squares on these give the result: the
centres of the cameras are exact beside the positions, so that all errors are in the world. numpy, float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from dune_cli.geometry.poses import cross_matrix, rotation_from_rotvec, transform_points
from dune_cli.geometry.sim3 import rigid_part, scale_of, similarity_from_points

TRIPLES = 1000  # that are tried at most: with 40 % wrong positions, 200 of them have none
LEAST_AGREEING = 5  # positions, or all of fewer: three or four fit too well to tell that another one is a bit wrong
JUDGES = 1000  # positions that a triple is judged by, at most
BEYOND_DOUBT = 1000.0  # of F with 3 and 5 degrees of freedom: 1 in a million right fives has it
AGREE = 4.03  # standard deviations of a coordinate: 1 of 1,000 right positions is farther off (chi, 3 degrees)
MEDIAN_DISTANCE = 1.538  # the median of a distance in space, in standard deviations of a coordinate
ROUNDS, STEPS = 30, 20
FEW = 10  # degrees of freedom: below, the residuals tell less of the error than what is stated of it
SIMILARITY = 7  # parameters
LEVEL_RAD, LEVEL_SPREAD = np.radians(10), 0.25  # cameras held level; the least mean square of a horizontal axis' tilt
DECIDES = 0.2  # the mean cosine that tells up from down


@dataclass(frozen=True)
class PositionFit:
    """A similarity `world_from_scene` (4, 4) and how well N positions determine it.

    `residuals` (N, 3): where the scene has the camera less the position, in the world. `agrees` (N,) bool: the
    positions that were used; the others are wrong. `free_scale`: the scale that the positions give, which is that of
    the similarity unless another one was fixed; `sigma`: standard deviation of a coordinate with it, in units of the
    stated ones; `scale_sd`: standard deviation of its logarithm. `roll_sd`: standard deviation in
    radians of the rotation about `axis` (3,), the unit vector in the world along which the positions lie.
    """

    world_from_scene: np.ndarray
    residuals: np.ndarray
    agrees: np.ndarray
    sigma: float
    scale_sd: float
    free_scale: float
    roll_sd: float
    axis: np.ndarray

    @property
    def rms(self) -> float:
        """Root mean square distance of the positions that agree."""
        return float(np.sqrt((self.residuals[self.agrees] ** 2).sum(-1).mean()))


def fit_positions(
    positions: np.ndarray,
    centres: np.ndarray,
    sds: np.ndarray,
    with_scale: bool = True,
    seed: int = 0,
    tolerance: float = 0.0,
    agrees: np.ndarray | None = None,
    sigma: float = 0.0,
) -> PositionFit:
    """The similarity that takes `centres` (N, 3) of the scene to `positions` (N, 3) of the world, N at least 3.

    `sds` (N, 3): standard deviations of the coordinates of each position; only their ratios matter to the result.
    Without `with_scale` the scale is 1. Fewer than half of the positions may be wrong, of five one that is far off, and
    of four none; one within `tolerance` of the world, which the scene itself may be off, is not. `agrees` (N,) bool:
    the right ones, where that is known; `sigma`: what their standard deviation in units of `sds` is at least, where
    that is known. Where the positions lie on a line, the rotation about it is arbitrary, and `roll_sd` large.
    """
    positions, centres = np.asarray(positions, np.float64), np.asarray(centres, np.float64)
    sds = np.asarray(sds, np.float64)
    if agrees is None:
        agrees, free = _agreeing(positions, centres, sds, seed, tolerance)
    else:
        start = similarity_from_points(positions[agrees], centres[agrees])
        free = _weighted(positions[agrees], centres[agrees], sds[agrees], start, True)
    residuals = transform_points(free, centres) - positions
    sigma = max(_sigma(residuals[agrees] / sds[agrees]), sigma)
    fit = free if with_scale else _weighted(positions[agrees], centres[agrees], sds[agrees], free, False)
    if not with_scale:
        residuals = transform_points(fit, centres) - positions
    known_sigma = max(sigma, 1.0) if 3 * agrees.sum() - SIMILARITY < FEW else sigma
    turned = transform_points(fit, centres)[agrees]
    turned -= turned.mean(axis=0)
    weights = 1 / sds[agrees] ** 2
    _, sizes, axes = np.linalg.svd(turned * np.sqrt(weights.mean(axis=1))[:, None], full_matrices=False)
    extent, lateral = float(np.sqrt((weights * turned**2).sum())), float(np.sqrt((sizes[1:] ** 2).sum()))
    return PositionFit(
        fit,
        residuals,
        agrees,
        sigma,
        known_sigma / max(extent, 1e-300),
        float(scale_of(free)),
        known_sigma / max(lateral, 1e-300),
        axes[0],
    )


def _agreeing(
    positions: np.ndarray, centres: np.ndarray, sds: np.ndarray, seed: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The positions that agree (N,) bool, and the similarity that they give."""
    count = len(positions)
    triples = _triples(count, seed)
    fits = similarity_from_points(positions[triples], centres[triples])
    judges = np.arange(count)
    if count > JUDGES:
        judges = np.random.default_rng(seed).choice(count, JUDGES, replace=False)
    off = np.einsum("tij,nj->tni", fits[:, :3, :3], centres[judges]) + fits[:, None, :3, 3] - positions[judges]
    distances = np.linalg.norm(off / sds[judges], axis=-1)
    middle = min((len(judges) + 3) // 2, len(judges)) - 1  # three of them are fitted
    scores = np.partition(distances, middle, axis=1)[:, middle]
    fit = fits[scores.argmin()]
    floor = 1e-9 * max(float(np.abs(positions - positions.mean(axis=0)).max() / sds.max()), 1e-300)
    small = 1 + 5 / max(3 * count - SIMILARITY, 1)
    sigma = max(small * float(scores.min()) / MEDIAN_DISTANCE, floor)
    agrees, half = np.zeros(count, dtype=bool), min(max((count + 3) // 2, LEAST_AGREEING), count)
    if count == LEAST_AGREEING and (found := _far_one(positions, centres, sds, fit, tolerance)) is not None:
        return found
    for _ in range(ROUNDS):
        off = transform_points(fit, centres) - positions
        distances = np.linalg.norm(off / sds, axis=-1)
        now = (distances <= AGREE * sigma) | (np.linalg.norm(off, axis=-1) <= tolerance)
        if now.sum() < half:  # the nearest ones
            now = distances <= np.sort(distances)[half - 1]
        if np.array_equal(now, agrees):
            break
        agrees = now
        fit = _weighted(positions[agrees], centres[agrees], sds[agrees], fit, True)
        residuals = (transform_points(fit, centres) - positions)[agrees] / sds[agrees]
        sigma = max(_sigma(residuals), floor)
    return agrees, fit


def _far_one(
    positions: np.ndarray, centres: np.ndarray, sds: np.ndarray, start: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of five positions the four that agree (N,) and their similarity, where all of them fit worse beyond doubt (an F
    test)."""

    def fitted(agrees: np.ndarray) -> tuple[float, np.ndarray]:
        fit = _weighted(positions[agrees], centres[agrees], sds[agrees], start, True)
        off = (transform_points(fit, centres) - positions)[agrees] / sds[agrees]
        return float((off**2).sum()), fit

    count = len(positions)
    whole, _ = fitted(np.ones(count, bool))
    parts = [fitted(np.arange(count) != index) for index in range(count)]
    best = int(np.argmin([squares for squares, _ in parts]))
    squares, fit = parts[best]
    freedom = 3 * (count - 1) - SIMILARITY
    off = float(np.linalg.norm(transform_points(fit, centres[best]) - positions[best]))
    if off <= tolerance or (whole - squares) / 3 <= BEYOND_DOUBT * squares / freedom:
        return None
    return np.arange(count) != best, fit


def _triples(count: int, seed: int) -> np.ndarray:
    """(T, 3) indices: all triples, or some of them."""
    if comb(count, 3) <= TRIPLES:
        return np.array(list(combinations(range(count), 3)))
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((TRIPLES, count)), axis=1)[:, :3]


def _sigma(residuals: np.ndarray) -> float:
    """Standard deviation of a coordinate from `residuals` (N, 3) in units of the stated ones."""
    return float(np.sqrt((residuals**2).sum() / max(residuals.size - SIMILARITY, 1)))


def _weighted(
    positions: np.ndarray, centres: np.ndarray, sds: np.ndarray, start: np.ndarray, with_scale: bool
) -> np.ndarray:
    """(4, 4) the similarity of least squares with a standard deviation (N, 3) for every coordinate; Gauss-Newton from
    the one with equal weights for a position's coordinates. What is not determined stays as in the latter."""
    fit = similarity_from_points(positions, centres, 1 / (sds**2).mean(axis=1), with_scale)
    if np.all(sds == sds[:, :1]):
        return fit
    for _ in range(STEPS):
        moved = transform_points(fit, centres)
        middle = moved.mean(axis=0)
        arms = moved - middle
        columns = [-cross_matrix(arms), np.tile(np.eye(3), (len(arms), 1, 1))]
        if with_scale:
            columns.append(arms[..., None])
        jacobian = np.concatenate(columns, axis=-1) / sds[..., None]
        length = float(np.abs(arms).max()) or 1.0
        scaling = np.array([1 / length] * 3 + [1.0] * 3 + [1 / length] * with_scale)
        wanted = ((positions - moved) / sds).ravel()
        step = np.linalg.lstsq(jacobian.reshape(-1, len(scaling)) * scaling, wanted, rcond=1e-9)[0] * scaling
        change = np.eye(4)
        change[:3, :3] = (np.exp(step[6]) if with_scale else 1.0) * rotation_from_rotvec(step[:3])
        change[:3, 3] = middle + step[3:6] - change[:3, :3] @ middle
        fit = change @ fit
        if np.linalg.norm(step / scaling) < 1e-12 * length:
            break
    return fit


def turned_to_orientations(
    world_from_scene: np.ndarray, axis: np.ndarray, pivot: np.ndarray, scene_from_cam: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, float]:
    """The similarity turned about `axis` (3,) through `pivot` (3,) of the world so that the rotations of
    `scene_from_cam` (M, 4, 4) agree best with `known` (M, 3, 3), cameras to world; and the median angle in radians that
    is left.

    Maximises the sum of traces of known^T R(angle) rotation, which is a + b cos(angle) + c sin(angle).
    """
    turned = rigid_part(world_from_scene @ scene_from_cam)[:, :3, :3]
    sums = (turned @ np.swapaxes(known, 1, 2)).sum(axis=0)
    cosine = np.trace(sums) - axis @ sums @ axis
    sine = np.trace(cross_matrix(axis) @ sums)
    rotation = rotation_from_rotvec(np.arctan2(sine, cosine) * axis)
    left = np.swapaxes(known, 1, 2) @ rotation @ turned
    angles = np.arccos(np.clip((np.trace(left, axis1=1, axis2=2) - 1) / 2, -1, 1))
    return _about(rotation, pivot) @ world_from_scene, float(np.median(angles))


def turned_level(
    world_from_scene: np.ndarray, axis: np.ndarray, pivot: np.ndarray, scene_from_cam: np.ndarray
) -> np.ndarray | None:
    """The similarity turned about `axis` (3,) through `pivot` (3,) so that the cameras' x axes are horizontal (z is
    up), as in photos that are held level, from the ground or from a drone. None where this does not tell: the x axes
    lie along the axis, no turn makes them horizontal, or nothing tells up from down.

    `scene_from_cam` (M, 4, 4) are poses of upright photos.
    """
    turned = rigid_part(world_from_scene @ scene_from_cam)[:, :3, :3]
    angles = np.linspace(0, 2 * np.pi, 1440, endpoint=False)
    rotations = rotation_from_rotvec(angles[:, None] * axis)
    tilt = np.einsum("aj,njk->ank", rotations[:, 2], turned)  # the camera axes' parts along up
    costs = (tilt[..., 0] ** 2).mean(axis=1)
    if np.sqrt(costs.min()) > np.sin(LEVEL_RAD) or costs.max() < LEVEL_SPREAD:
        return None
    downward = -tilt[..., 1].mean(axis=1)  # y is down
    if np.abs(downward[costs.argmin()]) < DECIDES:
        downward = -tilt[..., 2].mean(axis=1)  # or the camera looks down
    right = downward >= DECIDES
    if not right.any():
        return None
    best = int(np.where(right, costs, np.inf).argmin())
    if np.sqrt(costs[best]) > np.sin(LEVEL_RAD):
        return None
    return _about(rotations[best], pivot) @ world_from_scene


def _about(rotation: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """(4, 4) the rotation about a point."""
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = rotation, pivot - rotation @ pivot
    return turn
