"""Who is who in the views of a scene: bodies fitted in single views, matched by how they look from the other views.

The body that one view gives, in metres, is moved to another camera by the relative pose: X' = R X + s t, where s, the
metres of the scene's unit, is the same for all people. Its joints are compared with those found there, so that place,
size, posture and facing count together, and joints on one epipolar line at another depth do not match. Where s is
unknown, it is the one by which most people are found again. Pairs are assigned one to one (H. Kuhn, "The Hungarian
method", 1955) and joined to identities with at most one body a view, the best pairs first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.fitting import NEAREST_M

ACCEPTED = 0.45  # mean distance of joints, in sizes of the body, below which two bodies are one person
_FARTHEST = 1.0  # body sizes, beyond which a joint's distance counts no more
_STEP = 0.05  # of the scales tried, natural logarithm
# A body's size in a single view is assumed, that of an adult: a child is so much smaller, in steps of _STEP, and what
# such a size adds to the distance.
_SMALLER = np.arange(-3, 13)
_SMALLER_COST = 0.15 * (_SMALLER * _STEP / 0.4) ** 2
_EXTENT_M = (0.02, 400.0)  # largest distance between two cameras, metres, of the scales tried
_DOUBT = 2.5  # factor by which a known scale may be wrong
_PARTNERS = 16  # views that a view is compared with: the nearest in the sequence, and others evenly
_POINTS_GAIN, _POINTS_SD = 0.4, 0.15  # of a scale that points on a body tell
_VIEWS_GAIN = 0.03  # by which a scale must explain the views better than cameras that do not move
_AT_ONCE = 4_000_000  # projected joints held at a time
_UNSEEN = 0.3  # what a joint of the moved body counts for that its own view does not see


@dataclass(frozen=True)
class SeenBodies:
    """O bodies in views: `view` (O,), its pose cam_from_world (O, 4, 4) in the scene's unit, K (O, 3, 3), landmarks
    (O, M, 3) in the camera in metres, pixels (O, M, 2) of the joints found with weights (O, M), size_px (O,).
    log_scale (O,): logarithm of the metres of a unit, as points of the scene on the body tell it; NaN where none do."""

    view: np.ndarray
    cam_from_world: np.ndarray
    K: np.ndarray
    landmarks: np.ndarray
    pixels: np.ndarray
    weights: np.ndarray
    size_px: np.ndarray
    log_scale: np.ndarray

    def __len__(self) -> int:
        return len(self.view)


@dataclass(frozen=True)
class Identities:
    """person (O,): of each body. scale: metres of the scene's unit; None where nothing tells it."""

    person: np.ndarray
    scale: float | None

    @property
    def people(self) -> int:
        return int(self.person.max()) + 1 if len(self.person) else 0


def identify(bodies: SeenBodies, scale: float | None = None) -> Identities:
    """Which bodies of different views are one person. scale: metres of the scene's unit, which may be wrong by _DOUBT;
    None: found on the way.

    People are numbered by their first view, in the order of its bodies.
    """
    pairs = _pairs_to_compare(bodies.view)
    extent = _extent(bodies.cam_from_world)
    if extent > 0:
        low, high = (end / extent for end in _EXTENT_M) if scale is None else (scale / _DOUBT, scale * _DOUBT)
        count = int(np.log(high / low) / _STEP)
        wider = low * np.exp(_STEP * np.arange(_SMALLER[0], count + _SMALLER[-1] + 1))
        costs = _symmetric_costs(bodies, pairs, wider)
        costs = np.min([costs[:, k : k + count + 1] + add for k, add in enumerate(_SMALLER_COST)], axis=0)
        still = _symmetric_costs(bodies, pairs, np.zeros(1))
        scale = _most_likely(bodies, pairs, wider[-_SMALLER[0] : count + 1 - _SMALLER[0]], costs, still) or scale
    elif scale is None and np.isfinite(bodies.log_scale).any():
        scale = float(np.exp(np.nanmedian(bodies.log_scale)))
    near = (1.0 if scale is None else scale) * np.exp(_STEP * _SMALLER)
    costs = (_symmetric_costs(bodies, pairs, near) + _SMALLER_COST).min(1)
    return Identities(_clusters(bodies.view, pairs, costs), scale)


def distances(pixels: np.ndarray, bodies: SeenBodies, rows: np.ndarray) -> np.ndarray:
    """(N,): mean distance of joints at `pixels` (N, M, 2) from those found on the bodies `rows` (N,), in sizes of the
    bodies, cut at one for each joint."""
    apart = np.linalg.norm(pixels - bodies.pixels[rows], axis=-1) / bodies.size_px[rows, None]
    apart = np.minimum(np.where(np.isfinite(apart), apart, np.inf), _FARTHEST)
    weights = bodies.weights[rows]
    return (apart * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)


def _extent(poses: np.ndarray) -> float:
    """The diagonal of the box around the cameras; 0 where they stand in one place."""
    if not len(poses):
        return 0.0
    centres = -(poses[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, 3:])[..., 0]
    extent = float(np.linalg.norm(np.ptp(centres, axis=0)))
    return extent if extent > 1e-9 * max(float(np.abs(centres).max()), 1e-12) else 0.0


def _pairs_to_compare(view: np.ndarray) -> np.ndarray:
    """(E, 2): bodies of different views, the first of the earlier view."""
    views = np.unique(view)
    partners: set[tuple[int, int]] = set()
    for place in range(len(views)):
        others = [other for other in range(len(views)) if other != place]
        near = sorted(others, key=lambda other: abs(other - place))[: _PARTNERS // 2]
        rest = sorted(set(others) - set(near))
        step = max(1, -(-len(rest) // (_PARTNERS - _PARTNERS // 2)))
        partners |= {(min(place, other), max(place, other)) for other in (*near, *rest[::step])}
    pairs = [
        (i, j)
        for first, second in sorted(partners)
        for i in np.flatnonzero(view == views[first])
        for j in np.flatnonzero(view == views[second])
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _symmetric_costs(bodies: SeenBodies, pairs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(E, S): mean of both directions."""
    both = [
        np.concatenate(
            [np.zeros((0, len(scales))), *(_costs(bodies, part, scales) for part in _parts(direction, len(scales)))]
        )
        for direction in (pairs, pairs[:, ::-1])
    ]
    return (both[0] + both[1]) / 2


def _parts(pairs: np.ndarray, scales: int) -> list[np.ndarray]:
    """Pairs that fit into memory together."""
    size = max(1, _AT_ONCE // (scales * 28))
    return [pairs[first : first + size] for first in range(0, len(pairs), size)]


def _costs(bodies: SeenBodies, pairs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(E, S): the first body of each pair, moved to the camera of the second, against the joints found there."""
    source, target = pairs.T
    to, back = bodies.cam_from_world[target], bodies.cam_from_world[source]
    rotation = to[:, :3, :3] @ back[:, :3, :3].transpose(0, 2, 1)
    motion = to[:, :3, 3] - (rotation @ back[:, :3, 3:])[..., 0]
    turned = bodies.landmarks[source] @ rotation.transpose(0, 2, 1)
    moved = turned[:, None] + scales[None, :, None, None] * motion[:, None, None]  # (E, S, M, 3)
    image = moved @ bodies.K[target].transpose(0, 2, 1)[:, None]
    ahead = moved[..., 2] > NEAREST_M
    pixels = image[..., :2] / np.where(ahead, image[..., 2], 1)[..., None]
    apart = np.linalg.norm(pixels - bodies.pixels[target][:, None], axis=-1) / bodies.size_px[target, None, None]
    apart = np.where(ahead, np.minimum(apart, _FARTHEST), _FARTHEST)
    weights = bodies.weights[target] * (_UNSEEN + (1 - _UNSEEN) * np.minimum(bodies.weights[source], 1))
    return np.einsum("esm,em->es", apart, weights) / np.maximum(weights.sum(1), 1e-9)[:, None]


def _most_likely(
    bodies: SeenBodies, pairs: np.ndarray, scales: np.ndarray, costs: np.ndarray, still: np.ndarray
) -> float | None:
    """The scale by which most people are found again, of `scales` (S,) with costs (E, S). still (E, 1): the costs for
    cameras that do not move. None where nobody is found by the views, and no points tell it."""
    gain = np.maximum(ACCEPTED - np.concatenate([still, costs], 1), 0)
    total = np.zeros(gain.shape[1])
    of_views = bodies.view[pairs]
    compared = np.unique(of_views, axis=0)
    for views in compared:
        chosen = np.flatnonzero((of_views == views).all(1))
        table = gain[chosen]
        first, second = (np.unique(pairs[chosen, side], return_inverse=True)[1] for side in (0, 1))
        by_first, by_second = (_largest(table, index) for index in (first, second))
        mutual = (table == by_first[first]) & (table == by_second[second])
        total += (table * mutual).sum(0) / len(compared)
    # cameras that only turn find them as well: there is no parallax, or the camera follows somebody
    total = total[1:] if total.max() - total[0] > _VIEWS_GAIN else np.zeros(len(scales))
    told = bodies.log_scale[np.isfinite(bodies.log_scale)]
    for one in told:
        total += _POINTS_GAIN * np.exp(-(((np.log(scales) - one) / _POINTS_SD) ** 2) / 2) / len(told)
    if not total.max() > 0:
        return None
    best = np.flatnonzero(total >= total.max() * (1 - 1e-3))
    return float(scales[best[len(best) // 2]])


def _largest(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(K, S): the largest of the rows (E, S) with each index (E,) from 0 to K - 1."""
    result = np.zeros((index.max() + 1, values.shape[1]))
    np.maximum.at(result, index, values)
    return result


def _clusters(view: np.ndarray, pairs: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """(O,): the person of each body, from the costs (E,) of pairs."""
    from scipy.optimize import linear_sum_assignment

    table = np.full((len(view), len(view)), np.nan)
    table[pairs[:, 0], pairs[:, 1]] = table[pairs[:, 1], pairs[:, 0]] = costs
    assigned: list[tuple[float, int, int]] = []
    of_views = view[pairs]
    for first, second in np.unique(of_views, axis=0):
        rows, columns = np.flatnonzero(view == first), np.flatnonzero(view == second)
        part = table[np.ix_(rows, columns)]
        for i, j in zip(*linear_sum_assignment(np.minimum(part, ACCEPTED))):
            if part[i, j] < ACCEPTED:
                assigned.append((float(part[i, j]), int(rows[i]), int(columns[j])))
    groups: dict[int, list[int]] = {body: [body] for body in range(len(view))}
    group_of = list(range(len(view)))
    for _, i, j in sorted(assigned):
        one, other = group_of[i], group_of[j]
        if one == other or set(view[groups[one]]) & set(view[groups[other]]):
            continue
        across = table[np.ix_(groups[one], groups[other])]
        if np.nanmean(across) < ACCEPTED:
            groups[one] += groups.pop(other)
            for body in groups[one]:
                group_of[body] = one
    return numbered(np.array(group_of), view)


def numbered(groups: Sequence[int] | np.ndarray, view: np.ndarray) -> np.ndarray:
    """(O,): groups (O,) of any numbers as 0, 1, ... in the order of their first body by view."""
    order = np.argsort(view, kind="stable")
    numbers: dict[int, int] = {}
    for body in order:
        numbers.setdefault(int(groups[body]), len(numbers))
    return np.array([numbers[int(group)] for group in groups], dtype=np.int64)
