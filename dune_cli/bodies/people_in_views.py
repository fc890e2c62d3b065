"""People in several views of a scene: who is who, one body for each, and the scale of the scene by their heights.

First each person has a scale of its own, then all share the scene's. docs/models/people.md, "People in a scene".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fitting import CHILD_BELOW_M, FittedBodies, shape_of_stature
from dune_cli.bodies.identities import ACCEPTED, SeenBodies, distances, identify, numbered
from dune_cli.bodies.multiview_fitting import BodiesInWorld, PeopleObservations, fit_in_world
from dune_cli.bodies.people_scale import MAX_SD, PeopleScale, scale_of_people
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.bodies.statures import GIVEN_SD_M, AssumedHeight
from dune_cli.geometry.poses import transform_points

CHILD_SD_M = 0.06  # of the height of a person whom the scene shows to be a child
_OTHERS = 2  # other people that must tell the scale, before it tells children from adults
_SAME_PLACE = 0.8  # of `distances`, below which a joint set that does not fit is still that of the person there
_JOIN = 0.8 * ACCEPTED  # people left alone join an identity only where it fits well


@dataclass(frozen=True)
class PeopleSeen:
    """O bodies found in the views of a scene: `view` (O,), cam_from_world (O, 4, 4) in the scene's unit, what each was
    fitted to (`targets`, with K (O, 3, 3)) and how (`single`, in the camera, metres). depth (O,): of the root in the
    scene's unit, as points of the scene on the body tell it, depth_sd (O,) of its logarithm; NaN where none do."""

    view: np.ndarray
    cam_from_world: np.ndarray
    targets: FitTargets
    single: FittedBodies
    depth: np.ndarray
    depth_sd: np.ndarray

    def __len__(self) -> int:
        return len(self.view)


@dataclass(frozen=True)
class PeopleTold:
    """Who is who, and their bodies. person (O,): of each body found. used (O,): whether the person's body was fitted to
    it. bodies: of the P people, their observations being those used, in order; None where nothing tells where they are.
    scale: by the people, None where they do not tell it."""

    person: np.ndarray
    used: np.ndarray
    bodies: BodiesInWorld | None
    scale: PeopleScale | None


def people_in_views(
    skeleton: AnnySkeleton, seen: PeopleSeen, assumed: AssumedHeight, scale: float | None = None
) -> PeopleTold:
    """The people of O bodies seen. scale: metres of the scene's unit, where they are known; then `PeopleTold.scale`
    only says what the people think of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scale = np.log(seen.single.translation[:, 2] / seen.depth)
    targets = seen.targets
    bodies = SeenBodies(
        seen.view,
        seen.cam_from_world,
        targets.K,
        seen.single.landmarks,
        targets.pixels,
        targets.pixel_weights,
        targets.size_px(),
        log_scale,
    )
    found = identify(bodies, scale)
    person, used = found.person, np.ones(len(seen), bool)
    start = found.scale
    if start is None:
        return PeopleTold(person, used, None, None)
    fit = _Fitter(skeleton, seen, assumed)
    free = fit(person, used, start, True)
    again, used = _regrouped(bodies, person, free)
    if not (np.array_equal(again, person) and used.all()):
        person = again
        free = fit(person, used, start, True)
    by_people = scale_of_people(free.scale, free.scale_sd, assumed, GIVEN_SD_M)
    if scale is None and by_people is None:
        return PeopleTold(person, used, None, None)
    final, told = scale, True
    if final is None:
        final, told = by_people.metres_per_unit, by_people.people > _OTHERS
    statures = _statures(free, final) if told and not assumed.given else None
    return PeopleTold(person, used, fit(person, used, final, False, statures), by_people)


@dataclass(frozen=True)
class _Fitter:
    """`fit_in_world` for groups of the bodies seen."""

    skeleton: AnnySkeleton
    seen: PeopleSeen
    assumed: AssumedHeight

    def __call__(
        self, person: np.ndarray, used: np.ndarray, scale: float, free: bool, statures: np.ndarray | None = None
    ) -> BodiesInWorld:
        """statures (P,): standing heights as the scene tells them; those of children are believed."""
        people = int(person.max()) + 1
        mean = np.full(people, self.assumed.mean)
        deviation = np.full(people, GIVEN_SD_M if self.assumed.given else self.assumed.sd)
        if statures is not None:
            child = statures < CHILD_BELOW_M
            mean, deviation = np.where(child, statures, mean), np.where(child, CHILD_SD_M, deviation)
        rows = np.flatnonzero(used)
        seen = self.seen
        observations = PeopleObservations(
            person[rows],
            seen.cam_from_world[rows],
            seen.targets[rows],
            seen.depth[rows],
            seen.depth_sd[rows],
            mean,
            deviation,
            shape_of_stature(self.skeleton, mean),
        )
        return fit_in_world(self.skeleton, observations, seen.single[rows], scale, free)


def _statures(free: BodiesInWorld, scale: float) -> np.ndarray:
    """(P,): standing heights by the scale of the scene; infinite for people of whom the scene does not tell it, or who
    may well be adults."""
    heights = free.stature * scale / free.scale
    sure = (free.scale_sd < MAX_SD / 2) & (heights * (1 + free.scale_sd) < CHILD_BELOW_M)
    return np.where(sure, np.maximum(heights, 0.5), np.inf)


def projected(bodies: BodiesInWorld, person: np.ndarray, cam_from_world: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(N, M, 2): pixels of the landmarks of people `person` (N,) in cameras (N, 4, 4), K (N, 3, 3); NaN behind them."""
    points = transform_points(cam_from_world, bodies.landmarks_world()[person])
    image = points @ K.transpose(0, 2, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(points[..., 2:] > 0, image[..., :2] / image[..., 2:], np.nan)


def _regrouped(bodies: SeenBodies, person: np.ndarray, fitted: BodiesInWorld) -> tuple[np.ndarray, np.ndarray]:
    """person (O,) and used (O,) after a look at how well the people's bodies explain what each view saw.

    What does not fit its person leaves it, or is not used where it is at the same place. People who are then seen in
    views that an identity lacks join it where its body fits them.
    """
    poses, K = bodies.cam_from_world, bodies.K
    rows = np.arange(len(bodies))
    apart = distances(projected(fitted, person, poses, K), bodies, rows)
    group, used = person.copy(), np.ones(len(bodies), bool)
    fresh = int(person.max()) + 1
    for number in range(fresh):
        own = np.flatnonzero(person == number)
        for row in own[np.argsort(-apart[own])][:-1]:  # the one that fits best stays
            if apart[row] >= _SAME_PLACE:
                group[row], fresh = fresh, fresh + 1
            elif apart[row] > ACCEPTED:
                used[row] = False
    joins = []
    sizes = np.bincount(group[used], minlength=fresh)
    for number in range(int(person.max()) + 1):
        for other in np.flatnonzero((sizes > 0) & (sizes <= sizes[number])):
            theirs = np.flatnonzero(group == other)
            if other == number or set(bodies.view[theirs]) & set(bodies.view[group == number]):
                continue
            pixels = projected(fitted, np.full(len(theirs), number), poses[theirs], K[theirs])
            distance = float(distances(pixels, bodies, theirs).mean())
            if distance < _JOIN:
                joins.append((distance, number, int(other)))
    gone: set[int] = set()
    for _, number, other in sorted(joins):
        views = set(bodies.view[group == number])
        if {number, other} & gone or set(bodies.view[group == other]) & views:
            continue
        group[group == other] = number
        gone.add(other)
    return numbered(group, bodies.view), used
