"""Anny fitted to the joints of several views with known cameras: one body a person, placed in the world of a scene.

As `fit_anny`, with one reprojection and one set of directions for each view of a person. The scene's unit of length may
be unknown: then each person has a scale, the metres of one unit, which the standing height tells. A camera at
`cam_from_world` (R, t), t in the scene's unit, sees a landmark that lies L from the root at R L + s (R x + t): the root
x is in the scene's unit, so that a change of the scale s changes the body's size in the scene and not its place.
Points of the scene on a person's body may tell the root's depth in a view besides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dune_cli.bodies.fit_start import hinge_axes
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fit_terms import (
    BODY,
    FitConfig,
    Term,
    direction_term,
    landmark_jacobian,
    pose_terms,
    project_landmarks,
    reprojection_term,
    shape_term,
)
from dune_cli.bodies.fitting import NEAREST_M, SHAPE_RANGE, SMOOTH, BodyState, FittedBodies, minimise
from dune_cli.bodies.skeleton import AnnySkeleton, Offsets, ShapeFamily

WIDTH = BODY + 4  # numbers of a person: rotations and shape, the root's place, the logarithm of the scale
_STARTS = 6  # views of a person from which its fit may start
_START_STEPS = 6
_SCALE_SD, _RAY_M = 0.3, 0.05  # of the scale at the start, and of a landmark across its ray
_LARGEST_SCALE_STEP = 0.5
_DEPTH_ROBUST = 3.0  # deviations of a depth, where its cost levels off
_AT_ONCE = 300  # observations of one batch
_DOUBTFUL_COST = 50.0  # of an observation: bodies that fit cost less
_NO_SCALE_SD = 10.0  # of a scale that nothing tells


@dataclass(frozen=True)
class PeopleObservations:
    """O observations of P people: which `person` (O,) each shows, from `cam_from_world` (O, 4, 4) in the scene's unit.

    targets: pixels, K (O, 3, 3) and directions of each observation. depth (O,): of the root in the camera, in the
    scene's unit, as points of the scene tell it; depth_sd (O,): of its logarithm; NaN where none are known.
    stature, stature_sd (P,): standing heights in metres. shape (P, 6): to start from.
    """

    person: np.ndarray
    cam_from_world: np.ndarray
    targets: FitTargets
    depth: np.ndarray
    depth_sd: np.ndarray
    stature: np.ndarray
    stature_sd: np.ndarray
    shape: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.person)
        if self.targets.pixels is None or self.targets.points is None or len(self.targets) != count:
            raise ValueError(f"{count} observations need pixels and directions each")
        if count and (self.person.min() < 0 or set(self.person.tolist()) != set(range(len(self.stature)))):
            raise ValueError(f"every one of {len(self.stature)} people needs an observation")

    def __len__(self) -> int:
        return len(self.person)

    def of(self, people: np.ndarray) -> tuple[PeopleObservations, np.ndarray]:
        """Some of the people, renumbered; and the rows (O',) of their observations."""
        number = np.full(len(self.stature), -1)
        number[people] = np.arange(len(people))
        rows = np.flatnonzero(number[self.person] >= 0)
        chosen = PeopleObservations(
            number[self.person[rows]],
            self.cam_from_world[rows],
            self.targets[rows],
            self.depth[rows],
            self.depth_sd[rows],
            self.stature[people],
            self.stature_sd[people],
            self.shape[people],
        )
        return chosen, rows

    def scaled(self, factor: float) -> PeopleObservations:
        """With another unit: all lengths of the scene times `factor`."""
        poses = self.cam_from_world.copy()
        poses[:, :3, 3] *= factor
        return replace(self, cam_from_world=poses, depth=self.depth * factor)


@dataclass(frozen=True)
class BodiesInWorld:
    """P bodies fitted to O observations, float64.

    rotations (P, J, 3, 3): what `Anny.forward` takes, the root's into the world. shape (P, 6). root (P, 3): the root
    joint in the world, in the scene's unit. scale (P,): metres of one unit; scale_sd (P,): of its logarithm. landmarks
    (P, M, 3): from the root, in metres, in the world's axes. pixels (O, M, 2): their projections. root_depth (O,): in
    the camera, in the scene's unit. cost (O,): the squared residuals of an observation, with those of the person's pose
    and shape. stature (P,): standing height, metres. iterations (P,).
    """

    rotations: np.ndarray
    shape: np.ndarray
    root: np.ndarray
    scale: np.ndarray
    scale_sd: np.ndarray
    landmarks: np.ndarray
    pixels: np.ndarray
    root_depth: np.ndarray
    cost: np.ndarray
    stature: np.ndarray
    iterations: np.ndarray

    def landmarks_world(self) -> np.ndarray:
        """(P, M, 3) in the scene's unit."""
        return self.root[:, None] + self.landmarks / self.scale[:, None, None]


@dataclass(frozen=True)
class WorldBodyState(BodyState):
    """As `BodyState`, the translation being the root in the world; log_scale (P,)."""

    log_scale: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> WorldBodyState:
        """Some of the people."""
        return WorldBodyState(*(values[chosen] for values in vars(self).values()))

    def moved(self, step: np.ndarray) -> WorldBodyState:
        """After a step (P, WIDTH): rotations by their own axes, shape, root, logarithm of the scale."""
        body = super().moved(step[:, : BODY + 3])
        change = np.clip(step[:, BODY + 3], -_LARGEST_SCALE_STEP, _LARGEST_SCALE_STEP)
        return WorldBodyState(body.rotations, body.shape, body.translation, self.log_scale + change)


@dataclass(frozen=True)
class WorldFitProblem:
    """The observations with the bodies that may explain them. scale_free: whether the scales change."""

    skeleton: AnnySkeleton
    family: ShapeFamily
    observations: PeopleObservations
    hinges: tuple[np.ndarray, np.ndarray]
    config: FitConfig
    scale_free: bool

    def __getitem__(self, people: np.ndarray) -> WorldFitProblem:
        """Some of the people."""
        axes, least = self.hinges
        observations, _ = self.observations.of(people)
        return replace(
            self, family=self.family[people], observations=observations, hinges=(axes[people], least[people])
        )

    def cost(self, state: WorldBodyState) -> np.ndarray:
        """(P,): the sum of squared residuals, infinite for a body that is not in front of each of its cameras."""
        seen, own = self._terms(state, self.family.offsets(state.shape), None)
        person = self.observations.person
        depth = self.root_depth(state) * np.exp(state.log_scale)[person]
        cost = np.where(depth > NEAREST_M, sum(part.cost for part in seen), np.inf)
        return np.bincount(person, cost, len(state.shape)) + sum(part.cost for part in own)

    def linearise(self, state: WorldBodyState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cost (P,), gradient (P, WIDTH) of half the cost, and the Gauss-Newton matrix (P, WIDTH, WIDTH)."""
        offsets, slopes = self.family.offsets_and_slopes(state.shape)
        seen, own = self._terms(state, offsets, slopes)
        cost, gradient, matrix = _normal_equations(own)
        for total, part in zip((cost, gradient, matrix), _normal_equations(seen)):
            np.add.at(total, self.observations.person, part)
        return cost, gradient, matrix

    def observation_cost(self, state: WorldBodyState) -> np.ndarray:
        """(O,): see `BodiesInWorld.cost`."""
        seen, own = self._terms(state, self.family.offsets(state.shape), None)
        return sum(part.cost for part in seen) + sum(part.cost for part in own)[self.observations.person]

    def root_depth(self, state: WorldBodyState) -> np.ndarray:
        """(O,) in the scene's unit."""
        poses = self.observations.cam_from_world
        return np.einsum("oc,oc->o", poses[:, 2, :3], state.translation[self.observations.person]) + poses[:, 2, 3]

    def landmarks(self, state: WorldBodyState) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks (P, M, 3) from the root in the world's axes, and (O, M, 3) in the cameras, in metres."""
        posed = self.skeleton.forward(state.rotations, self.family.offsets(state.shape))
        return posed.landmarks, self._in_cameras(posed.landmarks, state)[0]

    def _in_cameras(self, landmarks: np.ndarray, state: WorldBodyState) -> tuple[np.ndarray, np.ndarray]:
        """The landmarks (O, M, 3) and the root (O, 3) in the cameras, in metres."""
        person, poses = self.observations.person, self.observations.cam_from_world
        rotation, scale = poses[:, :3, :3], np.exp(state.log_scale)[person]
        root = (rotation @ state.translation[person][..., None])[..., 0] + poses[:, :3, 3]
        root = root * scale[:, None]
        return landmarks[person] @ rotation.transpose(0, 2, 1) + root[:, None], root

    def _terms(
        self, state: WorldBodyState, offsets: Offsets, slopes: list[Offsets] | None
    ) -> tuple[list[Term], list[Term]]:
        """Those of the O observations, and those of the P people."""
        observed, config, person = self.observations, self.config, self.observations.person
        rotation, scale = observed.cam_from_world[:, :3, :3], np.exp(state.log_scale)[person]
        posed = self.skeleton.forward(state.rotations, offsets)
        points, root = self._in_cameras(posed.landmarks, state)
        jacobian, by_depth = None, None
        if slopes is not None:
            local = landmark_jacobian(self.skeleton, posed, slopes, WIDTH)
            jacobian = rotation[:, None] @ local[person]
            jacobian[..., BODY : BODY + 3] = (rotation * scale[:, None, None])[:, None]
            by_depth = np.zeros((len(person), 1, WIDTH))
            by_depth[:, 0, BODY : BODY + 3] = rotation[:, 2] * (scale / np.maximum(root[:, 2], 1e-6))[:, None]
            if self.scale_free:
                jacobian[..., BODY + 3] = root[:, None]
        seen = [
            reprojection_term(observed.targets, config, points, jacobian),
            direction_term(observed.targets, config, points, jacobian),
            _depth_term(observed, root[:, 2] / scale, by_depth),
        ]
        stature = observed.stature, observed.stature_sd
        own = pose_terms(config, self.hinges, state.rotations, None if slopes is None else WIDTH)
        own.append(shape_term(stature, config, state.shape, offsets, slopes, WIDTH))
        return seen, own


def _normal_equations(terms: list[Term]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gradient = sum(np.einsum("prn,pr->pn", part.jacobian, part.values) for part in terms)
    matrix = sum(part.jacobian.transpose(0, 2, 1) @ part.jacobian for part in terms)
    return sum(part.cost for part in terms), gradient, matrix


def _depth_term(observed: PeopleObservations, depth: np.ndarray, by_depth: np.ndarray | None) -> Term:
    """The logarithm of the root's depth (O,) about that of the scene's points, under the robust loss of reprojection.
    by_depth (O, 1, N): the derivatives of the logarithm."""
    known = np.isfinite(observed.depth)
    weight = np.where(known, 1 / np.where(known, observed.depth_sd, 1), 0)
    residual = (np.log(np.maximum(depth, 1e-12)) - np.log(np.where(known, observed.depth, 1))) * weight
    robust = _DEPTH_ROBUST**2 / (_DEPTH_ROBUST**2 + residual**2)
    jacobian = np.zeros((len(depth), 0, 0)) if by_depth is None else by_depth * (weight * robust)[:, None, None]
    return Term(residual**2 * robust, (residual * robust)[:, None], jacobian)


def fit_in_world(
    skeleton: AnnySkeleton,
    observations: PeopleObservations,
    single: FittedBodies,
    scale: float,
    scale_free: bool,
    config: FitConfig | None = None,
) -> BodiesInWorld:
    """One body for each person, fitted to all of its observations.

    single: the bodies of `fit_anny`, one an observation, in its camera. scale: metres of one unit; with `scale_free` it
    is where each person's own begins. The result does not depend on the scene's unit and world frame.
    """
    people, config = len(observations.stature), config or FitConfig()
    counts = np.bincount(observations.person, minlength=people)
    batches = np.split(np.arange(people), np.flatnonzero(np.diff(np.cumsum(counts) // _AT_ONCE)) + 1)
    parts, order = [], []
    for batch in batches:
        chosen, rows = observations.of(batch)
        order.append(rows)
        parts.append(_fit_batch(skeleton, chosen.scaled(scale), single[rows], scale_free, config))
    of_rows = np.argsort(np.concatenate(order))
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    joined |= {name: joined[name][of_rows] for name in ("pixels", "root_depth", "cost")}
    joined |= {"root": joined["root"] / scale, "root_depth": joined["root_depth"] / scale}
    return BodiesInWorld(**joined | {"scale": joined["scale"] * scale})


def _fit_batch(
    skeleton: AnnySkeleton,
    observations: PeopleObservations,
    single: FittedBodies,
    scale_free: bool,
    config: FitConfig,
) -> BodiesInWorld:
    """The same for some of the people, in a scene whose unit is about a metre."""
    family = skeleton.family(observations.shape)
    free = np.clip(observations.shape[:, skeleton.shape_columns], *SHAPE_RANGE)
    hinges = hinge_axes(skeleton, family.offsets(free))
    problem = WorldFitProblem(skeleton, family, observations, hinges, config, scale_free)
    smooth = replace(problem, config=replace(config, robust=SMOOTH))
    state = _best_start(smooth, single)
    minimise(smooth, state, iterations=_START_STEPS)
    iterations = minimise(problem, state)
    shape = observations.shape.copy()
    shape[:, skeleton.shape_columns] = state.shape
    offsets = family.offsets(state.shape)
    landmarks, in_cameras = problem.landmarks(state)
    return BodiesInWorld(
        skeleton.body_rotations(state.rotations, offsets),
        shape,
        state.translation,
        np.exp(state.log_scale),
        _scale_sd(problem, state),
        landmarks,
        project_landmarks(in_cameras, observations.targets.K),
        problem.root_depth(state),
        problem.observation_cost(state),
        offsets.stature,
        iterations,
    )


def _scale_sd(problem: WorldFitProblem, state: WorldBodyState) -> np.ndarray:
    """(P,): standard deviation of the logarithm of the scale, by the inverse of the Gauss-Newton matrix, and larger
    where the views contradict each other."""
    if not problem.scale_free:
        return np.zeros(len(state.shape))
    _, _, matrix = problem.linearise(state)
    matrix = matrix + np.eye(WIDTH) * 1e-6
    matrix[:, -1, -1] += 1 / _NO_SCALE_SD**2
    person = problem.observations.person
    cost = np.bincount(person, problem.observation_cost(state)) / np.bincount(person)
    return np.sqrt(np.linalg.inv(matrix)[:, -1, -1] * np.maximum(1, cost / _DOUBTFUL_COST))


def _best_start(problem: WorldFitProblem, single: FittedBodies) -> WorldBodyState:
    """Of the bodies of a person's views, the one that explains all views best, placed in closed form."""
    observed, people = problem.observations, len(problem.observations.stature)
    ranked = np.lexsort((single.cost, observed.person))  # by person, the best fit first
    counts = np.bincount(observed.person, minlength=people)
    first = np.cumsum(counts) - counts
    state, best = None, np.full(people, np.inf)
    for number in range(min(_STARTS, int(counts.max()))):
        pick = ranked[first + np.minimum(number, counts - 1)]  # (P,) observations
        tried = _started(problem, single.state[pick], pick)
        cost = problem.cost(tried)
        if state is None:
            state, best = tried, cost
            continue
        better = np.flatnonzero(cost < best)
        state.put(better, tried[better])
        best = np.minimum(best, cost)
    assert state is not None, "people without observations"
    return state


def _started(problem: WorldFitProblem, body: BodyState, pick: np.ndarray) -> WorldBodyState:
    """The bodies of the observations `pick` (P,), each in its camera, as bodies in the world: the linear least squares
    of root and scale that put the landmarks on all rays, or else where that camera had them."""
    observed, person = problem.observations, problem.observations.person
    poses = observed.cam_from_world
    rotations = body.rotations.copy()
    rotations[:, 0] = poses[pick, :3, :3].transpose(0, 2, 1) @ rotations[:, 0]
    own_shape = np.clip(body.shape, *SHAPE_RANGE)
    landmarks = problem.skeleton.forward(rotations, problem.family.offsets(own_shape)).landmarks
    points = landmarks[person] @ poses[:, :3, :3].transpose(0, 2, 1)
    targets = observed.targets
    homogeneous = np.concatenate([targets.pixels, np.ones((*targets.pixels.shape[:2], 1))], -1)
    rays = (homogeneous @ np.linalg.inv(targets.K).transpose(0, 2, 1))[..., :2]
    # rows (O, M, 2, 4): by the root in metres and the scale
    motion = poses[:, None, :, :]
    rows = motion[:, :, :2] - rays[..., None] * motion[:, :, 2:3]
    right = rays * points[..., 2:] - points[..., :2]
    weights = (targets.pixel_weights**2 / _RAY_M**2)[..., None]
    if not problem.scale_free:
        right = right - rows[..., 3]
    else:
        prior = 1 / _SCALE_SD**2
    size = 4 if problem.scale_free else 3
    rows = rows[..., :size]
    normal, vector = np.zeros((len(pick), size, size)), np.zeros((len(pick), size))
    np.add.at(normal, person, np.einsum("omar,omas,oma->ors", rows, rows, np.broadcast_to(weights, right.shape)))
    np.add.at(vector, person, np.einsum("omar,oma->or", rows, right * weights))
    normal += 1e-9 * np.eye(size)
    if problem.scale_free:
        normal[:, 3, 3] += prior
        vector[:, 3] += prior
    solved = np.linalg.solve(normal, vector[..., None])[..., 0]
    scale = solved[:, 3] if problem.scale_free else np.ones(len(pick))
    state = WorldBodyState(
        rotations, own_shape, solved[:, :3] / np.maximum(scale, 1e-3)[:, None], np.log(np.maximum(scale, 1e-3))
    )
    # where that lies behind a camera, or makes a giant or a dwarf: as the one camera saw it
    ahead = np.full(len(pick), np.inf)
    np.minimum.at(ahead, person, problem.root_depth(state) * scale[person])
    wrong = (ahead < NEAREST_M) | (scale < 0.3) | (scale > 3)
    root = body.translation - poses[pick, :3, 3]
    root = (poses[pick, :3, :3].transpose(0, 2, 1) @ root[..., None])[..., 0]
    return WorldBodyState(
        rotations, own_shape, np.where(wrong[:, None], root, state.translation), np.where(wrong, 0, state.log_scale)
    )
