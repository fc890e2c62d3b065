"""Anny fitted to joints: of a photo's landmarks in pixels, of landmarks in 3-D, or both.

A closed-form start (`fit_start.py`), then damped least squares (Levenberg-Marquardt) on all people at once, with
analytic Jacobians. Only landmarks are computed: no skin. The terms are those of SMPLify (Bogo et al., "Keep it SMPL",
ECCV 2016, section 3.2) without its mixture of poses: reprojection under a robust loss (Geman-McClure), a prior of pose
and shape, joint limits; and instead of that mixture, directions of bones from a network's landmarks in metres.
docs/models/people.md gives the terms and what each is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.bodies import fit_start
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fit_terms import (
    BODY,
    TURNS,
    FitConfig,
    Term,
    direction_term,
    landmark_jacobian,
    pose_terms,
    position_term,
    project_landmarks,
    reprojection_term,
    shape_term,
)
from dune_cli.bodies.skeleton import ADULT, LANDMARKS, AnnySkeleton, Offsets, ShapeFamily
from dune_cli.geometry.poses import rotation_from_rotvec

SMOOTH, _START_STEPS = 60.0, 10  # of the starts that look four ways: `robust`, and steps before one is chosen
LARGEST_TURN = 0.7  # radians that one step may change each number of a rotation
SHAPE_RANGE = (0.02, 0.98)
CHILD_BELOW_M = 1.45  # a standing height that few adults have
NEAREST_M = 0.2  # of the root, in front of the camera


@dataclass(frozen=True)
class FittedBodies:
    """P fitted bodies in the camera's frame, in metres, float64.

    rotations (P, J, 3, 3): what `Anny.forward` takes. shape (P, 6). translation (P, 3): the root joint, which is what
    is added to the posed body. landmarks (P, M, 3): LANDMARKS. landmarks_px (P, M, 2): their projections, NaN without a
    camera. cost (P,): the sum of squared residuals; iterations (P,). stature (P,): standing height. start_cost (P,).
    state: what the fit changed.
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
    state: BodyState

    def __len__(self) -> int:
        return len(self.cost)

    def __getitem__(self, chosen: np.ndarray) -> FittedBodies:
        """Some of the bodies."""
        return FittedBodies(**{name: value[chosen] for name, value in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence[FittedBodies]) -> FittedBodies:
        """All bodies of the parts, of which there is at least one."""
        columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        states = columns.pop("state")
        state = BodyState(*(np.concatenate([getattr(one, name) for one in states]) for name in vars(states[0])))
        return cls(**{name: np.concatenate(values) for name, values in columns.items()}, state=state)


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
        turn = np.clip(step[:, :TURNS].reshape(len(step), -1, 3), -LARGEST_TURN, LARGEST_TURN)
        shape = np.clip(self.shape + step[:, TURNS:BODY], *SHAPE_RANGE)
        return BodyState(self.rotations @ rotation_from_rotvec(turn), shape, self.translation + step[:, BODY:])


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
        return np.where(state.translation[:, 2] > NEAREST_M, cost, np.inf) if self.targets.K is not None else cost

    def linearise(self, state: BodyState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cost (P,), gradient (P, N) of half the cost, and the Gauss-Newton matrix (P, N, N)."""
        offsets, slopes = self.family.offsets_and_slopes(state.shape)
        parts = _residuals(self, state, offsets, slopes)
        gradient = sum(np.einsum("prn,pr->pn", part.jacobian, part.values) for part in parts)
        matrix = sum(part.jacobian.transpose(0, 2, 1) @ part.jacobian for part in parts)
        return sum(part.cost for part in parts), gradient, matrix


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
    free = np.clip(shape[:, skeleton.shape_columns], *SHAPE_RANGE)
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
        pixels = project_landmarks(landmarks, targets.K)
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
        state,
    )


def shape_of_stature(skeleton: AnnySkeleton, stature: np.ndarray) -> np.ndarray:
    """(P, 6): average bodies of standing heights (P,) in metres: adults, and below CHILD_BELOW_M children of the age at
    which an average one is so tall. Heights beyond what the body can have get the nearest."""
    shape = np.tile(skeleton.mean_shape, (len(stature), 1))
    child = stature < CHILD_BELOW_M
    names = skeleton.body.shape_names
    columns = np.where(child, names.index("age"), names.index("height"))
    low, high = np.where(child, 0.0, SHAPE_RANGE[0]), np.where(child, ADULT["age"], SHAPE_RANGE[1])
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
    smooth = replace(problem, config=replace(problem.config, robust=SMOOTH))
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


def _residuals(problem: FitProblem, state: BodyState, offsets: Offsets, slopes: list[Offsets] | None) -> list[Term]:
    """All terms. Without `slopes` their costs only; values and jacobians are empty."""
    skeleton, targets, config = problem.skeleton, problem.targets, problem.config
    posed = skeleton.forward(state.rotations, offsets)
    points = posed.landmarks + state.translation[:, None]
    width = BODY + 3
    jacobian = None
    if slopes is not None:
        jacobian = landmark_jacobian(skeleton, posed, slopes, width)
        jacobian[..., BODY:] = np.eye(3)
    terms = []
    if targets.pixels is not None:
        terms.append(reprojection_term(targets, config, points, jacobian))
    if targets.points is not None:
        name = position_term if targets.metric else direction_term
        terms.append(name(targets, config, points, jacobian))
    terms += pose_terms(config, problem.hinges, state.rotations, None if slopes is None else width)
    stature = targets.stature, targets.stature_sd
    terms.append(shape_term(stature, config, state.shape, offsets, slopes, width))
    return terms
