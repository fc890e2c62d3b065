"""Anny fitted to joints: of a photo's landmarks in pixels, of landmarks in 3-D, or both.

A closed-form start (`fit_start.py`), then damped least squares (Levenberg-Marquardt) on all people at once, with
analytic Jacobians. Only landmarks are computed: no skin. The terms are those of SMPLify (Bogo et al., "Keep it SMPL",
ECCV 2016, section 3.2) without its mixture of poses: reprojection under a robust loss (Geman-McClure), a prior of pose
and shape, joint limits; and instead of that mixture, directions of bones from a network's landmarks in metres.
docs/models/people.md gives the terms and what each is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dune_cli.bodies import fit_start
from dune_cli.bodies.fit_start import HINGES
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.skeleton import (
    ADULT,
    FREE_JOINTS,
    FREE_SHAPE,
    INDEX,
    LANDMARKS,
    AnnySkeleton,
    Offsets,
    ShapeFamily,
)
from dune_cli.geometry.poses import cross_matrix, rotation_from_rotvec, rotvec_from_rotation

# Pairs of landmarks whose directions the landmarks in metres give, and what a direction counts for.
BONES = (
    *((("left_shoulder", "right_shoulder"), 1.0), (("left_hip", "right_hip"), 1.0)),
    *((("left_ear", "right_ear"), 0.6), (("left_ear", "nose"), 0.6), (("right_ear", "nose"), 0.6)),
    *(
        ((f"{side}_{start}", f"{side}_{end}"), share)
        for side in ("left", "right")
        for start, end, share in (
            ("shoulder", "hip", 1.0),
            ("shoulder", "elbow", 1.0),
            ("elbow", "wrist", 1.0),
            ("hip", "knee", 1.0),
            ("knee", "ankle", 1.0),
            ("ankle", "foot_index", 1.0),
            ("heel", "foot_index", 1.0),
            ("wrist", "index", 0.4),
            ("wrist", "pinky", 0.4),
        )
    ),
)
# 1 / radians: how much a joint's rotation vector is held to the rest pose
_PRIOR = {
    **{"root": 0.0, "spine": 6.0, "neck": 6.0, "head": 3.0, "clavicle": 8.0, "shoulder01": 8.0, "upperarm01": 0.4},
    **{"lowerarm01": 0.3, "wrist": 2.0, "upperleg01": 0.5, "lowerleg01": 0.2, "foot": 1.5},
}
# radians that a joint may turn away from the rest pose before it costs; the root may turn as it will
_LIMIT = {
    **{"spine": 0.45, "neck": 0.5, "head": 0.8, "clavicle": 0.5, "shoulder01": 0.5, "upperarm01": 2.5},
    **{"lowerarm01": 2.6, "wrist": 1.4, "upperleg01": 2.4, "lowerleg01": 2.6, "foot": 0.9},
}
_SMOOTH, _START_STEPS = 60.0, 10  # of the starts that look four ways: `robust`, and steps before one is chosen
_LARGEST_TURN = 0.7  # radians that one step may change each number of a rotation
_SHAPE_RANGE = (0.02, 0.98)
CHILD_BELOW_M = 1.45  # a standing height that few adults have
_NEAREST_M = 0.2  # of the root, in front of the camera


@dataclass(frozen=True)
class FitConfig:
    """sigma_px: deviation of a landmark, as a share of the body's size in the photo. robust: in such deviations, where
    an outlier's cost levels off. sigma_direction: of a bone's unit direction. sigma_m: of a position in metres. prior,
    limit: weights of the pose prior and the joint limits (1 / radians). sigma_shape: of FREE_SHAPE. iterations,
    tolerance: the fit of a person ends after so many steps, or when one lowers the cost by less than this share.
    """

    sigma_px: float = 0.025
    robust: float = 6.0
    sigma_direction: float = 0.2
    sigma_m: float = 0.02
    prior: float = 1.0
    limit: float = 4.0
    sigma_shape: tuple[float, float, float] = (0.25, 2.0, 0.25)  # the height number follows from the stature
    iterations: int = 30
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        positive = (self.sigma_px, self.robust, self.sigma_direction, self.sigma_m, *self.sigma_shape)
        if min(positive) <= 0 or min(self.prior, self.limit, self.tolerance) < 0 or self.iterations < 1:
            raise ValueError(f"deviations and iterations must be positive, weights not negative: {self}")


@dataclass(frozen=True)
class FittedBodies:
    """P fitted bodies in the camera's frame, in metres, float64.

    rotations (P, J, 3, 3): what `Anny.forward` takes. shape (P, 6). translation (P, 3): the root joint, which is what
    is added to the posed body. landmarks (P, M, 3): LANDMARKS. landmarks_px (P, M, 2): their projections, NaN without a
    camera. cost (P,): the sum of squared residuals; iterations (P,). stature (P,): standing height. start_cost (P,).
    """

    rotations: np.ndarray
    shape: np.ndarray
    translation: np.ndarray
    landmarks: np.ndarray
    landmarks_px: np.ndarray
    cost: np.ndarray
    iterations: np.ndarray
    stature: np.ndarray
    start_cost: np.ndarray

    def __len__(self) -> int:
        return len(self.cost)


@dataclass(frozen=True)
class BodyState:
    """What the fit changes: rotations (P, F, 3, 3) of FREE_JOINTS, shape (P, 3) of FREE_SHAPE, translation (P, 3)."""

    rotations: np.ndarray
    shape: np.ndarray
    translation: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> BodyState:
        """Some of the people."""
        return BodyState(self.rotations[chosen], self.shape[chosen], self.translation[chosen])

    def put(self, chosen: np.ndarray, other: BodyState) -> None:
        """Overwrites some of the people."""
        for name, values in vars(other).items():
            getattr(self, name)[chosen] = values

    def moved(self, step: np.ndarray) -> BodyState:
        """After a step (P, 3 F + 6): rotations by their own axes, shape, translation."""
        turns = 3 * len(FREE_JOINTS)
        turn = np.clip(step[:, :turns].reshape(len(step), -1, 3), -_LARGEST_TURN, _LARGEST_TURN)
        shape = np.clip(self.shape + step[:, turns:-3], *_SHAPE_RANGE)
        return BodyState(self.rotations @ rotation_from_rotvec(turn), shape, self.translation + step[:, -3:])


@dataclass(frozen=True)
class FitProblem:
    """The targets of P people with the bodies that may explain them. hinges: see `fit_start.hinge_axes`."""

    skeleton: AnnySkeleton
    family: ShapeFamily
    targets: FitTargets
    hinges: tuple[np.ndarray, np.ndarray]
    config: FitConfig

    def __getitem__(self, chosen: np.ndarray) -> FitProblem:
        """Some of the people."""
        axes, least = self.hinges
        hinges = axes[chosen], least[chosen]
        return FitProblem(self.skeleton, self.family[chosen], self.targets[chosen], hinges, self.config)

    def cost(self, state: BodyState) -> np.ndarray:
        """(P,): the sum of squared residuals, infinite for a body that is not in front of the camera."""
        parts = _residuals(self, state, self.family.offsets(state.shape), None)
        cost = sum(part.cost for part in parts)
        return np.where(state.translation[:, 2] > _NEAREST_M, cost, np.inf) if self.targets.K is not None else cost

    def linearise(self, state: BodyState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cost (P,), gradient (P, N) of half the cost, and the Gauss-Newton matrix (P, N, N)."""
        offsets, slopes = self.family.offsets_and_slopes(state.shape)
        parts = _residuals(self, state, offsets, slopes)
        gradient = sum(np.einsum("prn,pr->pn", part.jacobian, part.values) for part in parts)
        matrix = sum(part.jacobian.transpose(0, 2, 1) @ part.jacobian for part in parts)
        return sum(part.cost for part in parts), gradient, matrix


@dataclass(frozen=True)
class _Term:
    """A group of residuals: cost (P,), values (P, R) and jacobian (P, R, N), of which half the cost's gradient is
    jacobianᵀ values."""

    cost: np.ndarray
    values: np.ndarray
    jacobian: np.ndarray


def fit_anny(
    skeleton: AnnySkeleton, targets: FitTargets, config: FitConfig | None = None, shape: np.ndarray | None = None
) -> FittedBodies:
    """Bodies fitted to the joints of P people.

    skeleton: of a body of the rig "light"; `shifted` for BlazePose's landmarks. shape (P, 6): phenotypes to start
    from, and those that stay (FREE_SHAPE changes); None: an average adult. ValueError for targets of other sizes.
    """
    config, people = config or FitConfig(), len(targets)
    shape = np.tile(skeleton.mean_shape, (people, 1)) if shape is None else np.array(shape, np.float64)
    if shape.shape != (people, len(skeleton.body.shape_names)):
        raise ValueError(f"shape must be ({people}, {len(skeleton.body.shape_names)}), received {shape.shape}")
    family = skeleton.family(shape)
    free = np.clip(shape[:, skeleton.shape_columns], *_SHAPE_RANGE)
    hinges = fit_start.hinge_axes(skeleton, family.offsets(free))
    problem = FitProblem(skeleton, family, targets, hinges, config)
    state = _best_start(problem, free)
    start_cost = problem.cost(state)
    iterations = minimise(problem, state)
    shape[:, skeleton.shape_columns] = state.shape
    offsets = problem.family.offsets(state.shape)
    posed = skeleton.forward(state.rotations, offsets)
    landmarks = posed.landmarks + state.translation[:, None]
    pixels = np.full((people, len(LANDMARKS), 2), np.nan)
    if targets.K is not None:
        pixels = _project(landmarks, targets.K)
    return FittedBodies(
        skeleton.body_rotations(state.rotations, offsets),
        shape,
        state.translation,
        landmarks,
        pixels,
        problem.cost(state),
        iterations,
        offsets.stature,
        start_cost,
    )


def shape_of_stature(skeleton: AnnySkeleton, stature: np.ndarray) -> np.ndarray:
    """(P, 6): average bodies of standing heights (P,) in metres: adults, and below CHILD_BELOW_M children of the age at
    which an average one is so tall. Heights beyond what the body can have get the nearest."""
    shape = np.tile(skeleton.mean_shape, (len(stature), 1))
    child = stature < CHILD_BELOW_M
    names = skeleton.body.shape_names
    columns = np.where(child, names.index("age"), names.index("height"))
    low, high = np.where(child, 0.0, _SHAPE_RANGE[0]), np.where(child, ADULT["age"], _SHAPE_RANGE[1])
    rows = np.arange(len(stature))
    for _ in range(40):
        middle = (low + high) / 2
        shape[rows, columns] = middle
        small = skeleton.offsets(shape).stature < stature
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return shape


def _best_start(problem: FitProblem, free: np.ndarray) -> BodyState:
    """The start of least cost: in closed form where 3-D landmarks give one, else upright bodies that look four ways,
    after a few steps each."""
    offsets = problem.family.offsets(free)
    starts = [BodyState(r, free.copy(), t) for r, t in fit_start.starts(problem.skeleton, problem.targets, offsets)]
    if len(starts) == 1:
        return starts[0]
    # these begin far from the joints, where a robust loss pulls no more
    smooth = replace(problem, config=replace(problem.config, robust=_SMOOTH))
    costs = []
    for state in starts:
        minimise(smooth, state, iterations=_START_STEPS)
        costs.append(smooth.cost(state))
    best = np.argmin(costs, 0)
    chosen = starts[0]
    for number, state in enumerate(starts):
        chosen.put(best == number, state[best == number])
    return chosen


def minimise(problem: FitProblem, state: BodyState, iterations: int | None = None) -> np.ndarray:
    """Lowers the cost of every person, changing `state`. Returns the number of steps (P,). The cost never grows."""
    config, people = problem.config, len(state.shape)
    damping, count = np.full(people, 1e-2), np.zeros(people, int)
    cost = problem.cost(state)
    active = np.flatnonzero(np.isfinite(cost))
    for _ in range(iterations or config.iterations):
        if not len(active):
            break
        part, now = problem[active], state[active]
        _, gradient, matrix = part.linearise(now)
        count[active] += 1
        left = np.arange(len(active))  # those without a lower cost yet
        finished = np.zeros(len(active), bool)
        for _ in range(6):
            diagonal = np.einsum("pnn->pn", matrix[left])
            damped = matrix[left] + np.eye(matrix.shape[1]) * (damping[active[left], None] * (diagonal + 1e-3))[:, None]
            step = -np.linalg.solve(damped, gradient[left][..., None])[..., 0]
            tried = now[left].moved(step)
            new = part[left].cost(tried)
            better = new < cost[active[left]]
            people_of = active[left]
            small = better & (cost[people_of] - new < config.tolerance * cost[people_of])
            finished[left[small]] = True
            state.put(people_of[better], tried[better])
            cost[people_of[better]] = new[better]
            damping[people_of] = np.where(better, np.maximum(damping[people_of] / 4, 1e-5), damping[people_of] * 4)
            left = left[~better]
            if not len(left):
                break
        finished[left] = True  # no step helps
        active = active[~finished]
    return count


# --- residuals ---


def _by_joint(table: dict[str, float]) -> np.ndarray:
    """(F,): the value of each of FREE_JOINTS in a table by the beginning of its name."""
    return np.array([next(v for k, v in table.items() if name.startswith(k)) for name in FREE_JOINTS])


_PRIOR_OF_JOINT = _by_joint(_PRIOR)
_LIMIT_OF_JOINT = _by_joint({**_LIMIT, "root": 1e3})
_STARTS = np.array([INDEX[start] for (start, _), _ in BONES])
_ENDS = np.array([INDEX[end] for (_, end), _ in BONES])
_SHARES = np.array([share for _, share in BONES])


def _residuals(problem: FitProblem, state: BodyState, offsets: Offsets, slopes: list[Offsets] | None) -> list[_Term]:
    """All terms. Without `slopes` their costs only; values and jacobians are empty."""
    skeleton, targets, config = problem.skeleton, problem.targets, problem.config
    posed = skeleton.forward(state.rotations, offsets)
    points = posed.landmarks + state.translation[:, None]
    jacobian = None
    if slopes is not None:
        people, turns = len(points), 3 * len(FREE_JOINTS)
        jacobian = np.zeros((people, len(LANDMARKS), 3, turns + len(FREE_SHAPE) + 3))
        # a small turn d of a free joint, in its own axes, moves what it carries by (G d) x (landmark - joint)
        arms = (posed.landmarks[:, :, None] - posed.joints[:, None]) * skeleton.moves[..., None]
        moved = -cross_matrix(arms) @ posed.rotations[:, None]  # (P, M, F, 3, 3)
        jacobian[..., :turns] = moved.transpose(0, 1, 3, 2, 4).reshape(people, len(LANDMARKS), 3, turns)
        for number, slope in enumerate(slopes):
            jacobian[..., turns + number] = skeleton.place(posed.rotations, slope)[1]
        jacobian[..., -3:] = np.eye(3)
    terms = []
    if targets.pixels is not None:
        terms.append(_reprojection(targets, config, points, jacobian))
    if targets.points is not None:
        name = _positions if targets.metric else _directions
        terms.append(name(targets, config, points, jacobian))
    terms += _pose_terms(config, problem.hinges, state.rotations, slopes is not None)
    terms.append(_shape_term(targets, config, state.shape, offsets, slopes))
    return terms


def _project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(P, M, 2) px of points (P, M, 3), with depths of at least 1 mm."""
    image = points @ K.T
    return image[..., :2] / np.maximum(image[..., 2:], 1e-3)


def _term(cost: np.ndarray, values: np.ndarray, jacobian: np.ndarray | None) -> _Term:
    people = len(cost)
    rows = values.reshape(people, -1)
    return _Term(cost, rows, np.zeros((people, 0, 0)) if jacobian is None else jacobian.reshape(*rows.shape, -1))


def _reprojection(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> _Term:
    K, weights = targets.K, targets.pixel_weights / (config.sigma_px * targets.size_px()[:, None])
    pixels = _project(points, K)
    residual = (pixels - targets.pixels) * weights[..., None]
    squared, limit = (residual**2).sum(-1), config.robust**2
    robust = limit / (limit + squared)  # of Geman-McClure, so that values and jacobian give the true gradient
    cost = (squared * robust).sum(-1)
    if jacobian is not None:
        depth = np.maximum(points[..., 2], 1e-3)
        by_point = np.zeros((*points.shape[:2], 2, 3))
        by_point[..., 0, 0], by_point[..., 1, 1] = K[0, 0] / depth, K[1, 1] / depth
        by_point[..., 0, 1] = K[0, 1] / depth
        by_point[..., 2] = -(pixels - K[:2, 2]) / depth[..., None]
        jacobian = by_point @ jacobian * (weights * robust)[..., None, None]
    return _term(cost, residual * robust[..., None], jacobian)


def _directions(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> _Term:
    bones = points[:, _ENDS] - points[:, _STARTS]
    length = np.linalg.norm(bones, axis=-1, keepdims=True)
    unit = bones / length
    wanted = targets.points[:, _ENDS] - targets.points[:, _STARTS]
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=-1, keepdims=True), 1e-9)
    seen = np.minimum(targets.point_weights[:, _ENDS], targets.point_weights[:, _STARTS])
    weights = _SHARES * np.where(seen > 0, 0.3 + 0.7 * seen, 0) / config.sigma_direction
    values = (unit - wanted) * weights[..., None]
    if jacobian is not None:
        across = (np.eye(3) - unit[..., None] * unit[..., None, :]) / length[..., None]
        jacobian = across @ (jacobian[:, _ENDS] - jacobian[:, _STARTS]) * weights[..., None, None]
    return _term((values**2).sum((1, 2)), values, jacobian)


def _positions(targets: FitTargets, config: FitConfig, points: np.ndarray, jacobian: np.ndarray | None) -> _Term:
    weights = targets.point_weights[..., None] / config.sigma_m
    values = (points - targets.points) * weights
    return _term((values**2).sum((1, 2)), values, None if jacobian is None else jacobian * weights[..., None])


def _inverse_right_jacobian(rotvec: np.ndarray) -> np.ndarray:
    """(..., 3, 3): d rotvec / d turn for R exp(turn) with R = exp(rotvec) (Solà et al., 2018, equation 144)."""
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    cross = cross_matrix(rotvec)
    safe = np.clip(angle, 1e-4, 3.1)
    factor = np.where(angle > 1e-4, 1 / safe**2 - (1 + np.cos(safe)) / (2 * safe * np.sin(safe)), 1 / 12)
    return np.eye(3) + cross / 2 + factor * (cross @ cross)


def _pose_terms(
    config: FitConfig, hinges: tuple[np.ndarray, np.ndarray], rotations: np.ndarray, with_jacobian: bool
) -> list[_Term]:
    """The prior, limits of the angle, and elbows and knees, which bend about one axis and not backwards.

    hinges: unit axes (P, H, 3), and the least angle (P, H) about each.
    """
    people, turns = len(rotations), 3 * len(FREE_JOINTS)
    rotvec = rotvec_from_rotation(rotations)
    angle = np.linalg.norm(rotvec, axis=-1)
    prior = rotvec * (_PRIOR_OF_JOINT * config.prior)[:, None]
    beyond = np.maximum(angle - _LIMIT_OF_JOINT, 0) * config.limit
    axes, least = hinges
    about = rotvec[:, _HINGE_SLOTS]
    along = (about * axes).sum(-1)
    aside = (about - along[..., None] * axes) * config.limit
    back = np.minimum(along - least, 0) * 2 * config.limit
    values = [prior, beyond, aside, back]
    jacobians: list[np.ndarray | None] = [None] * len(values)
    if with_jacobian:
        width = turns + len(FREE_SHAPE) + 3
        by_turn = _inverse_right_jacobian(rotvec)
        made = [np.zeros((people, *value.shape[1:], width)) for value in values]
        direction = rotvec / np.maximum(angle, 1e-9)[..., None]
        for slot in range(len(FREE_JOINTS)):
            own = slice(3 * slot, 3 * slot + 3)
            made[0][:, slot, :, own] = by_turn[:, slot] * (_PRIOR_OF_JOINT[slot] * config.prior)
            made[1][:, slot, own] = direction[:, slot] * (beyond[:, slot, None] > 0) * config.limit
        for number, slot in enumerate(_HINGE_SLOTS):
            own = slice(3 * slot, 3 * slot + 3)
            axis = axes[:, number]
            flat = np.eye(3) - axis[:, :, None] * axis[:, None]
            made[2][:, number, :, own] = config.limit * flat @ by_turn[:, slot]
            turned = (axis[:, None] @ by_turn[:, slot])[:, 0]
            made[3][:, number, own] = turned * (back[:, number, None] < 0) * 2 * config.limit
        jacobians = list(made)
    return [_term((v**2).reshape(people, -1).sum(1), v, j) for v, j in zip(values, jacobians)]


_HINGE_SLOTS = np.array([FREE_JOINTS.index(name) for name, *_ in HINGES])


def _shape_term(
    targets: FitTargets, config: FitConfig, shape: np.ndarray, offsets: Offsets, slopes: list[Offsets] | None
) -> _Term:
    """The phenotypes about their means, and the standing height about the assumed or given one."""
    values = (shape - [ADULT[name] for name in FREE_SHAPE]) / config.sigma_shape
    height = (offsets.stature - targets.stature) / targets.stature_sd
    values = np.concatenate([values, height[:, None]], 1)
    jacobian = None
    if slopes is not None:
        turns = 3 * len(FREE_JOINTS)
        jacobian = np.zeros((*values.shape, turns + len(FREE_SHAPE) + 3))
        for number, slope in enumerate(slopes):
            jacobian[:, number, turns + number] = 1 / config.sigma_shape[number]
            jacobian[:, -1, turns + number] = slope.stature / targets.stature_sd
    return _term((values**2).sum(1), values, jacobian)
