"""People in several views: synthetic truth, invariance, gradients, and what cannot be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dune_cli.bodies.fit_start import hinge_axes
from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.fitting import FitConfig
from dune_cli.bodies.identities import SeenBodies, identify
from dune_cli.bodies.multiview_fitting import WIDTH, PeopleObservations, WorldBodyState, WorldFitProblem
from dune_cli.bodies.people_in_views import PeopleSeen, PeopleTold, people_in_views, projected
from dune_cli.bodies.people_scale import scale_of_people
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import FREE_JOINTS, LANDMARKS, AnnySkeleton
from dune_cli.bodies.statures import AssumedHeight
from dune_cli.geometry.poses import from_rotation_translation, inverse, rotation_from_rotvec
from support.anny_poses import PosedPeople, posed_people
from support.people_views import people_seen, ring

ADULTS = AssumedHeight(1.70, 0.09)


@pytest.fixture(scope="module")
def skeleton() -> AnnySkeleton:
    return AnnySkeleton(load_anny("light"))


@pytest.fixture(scope="module")
def people(skeleton: AnnySkeleton) -> PosedPeople:
    return posed_people(skeleton, 3, seed=2)


@pytest.fixture(scope="module")
def three_views(skeleton: AnnySkeleton, people: PosedPeople) -> tuple[PeopleSeen, np.ndarray]:
    return people_seen(skeleton, people, ring(0, 30, -50), unit_m=0.4)


@pytest.fixture(scope="module")
def told(skeleton: AnnySkeleton, three_views: tuple[PeopleSeen, np.ndarray]) -> PeopleTold:
    return people_in_views(skeleton, three_views[0], ADULTS)


def place_errors(told: PeopleTold, people: PosedPeople, truth: np.ndarray, unit_m: float) -> np.ndarray:
    """(P,): as a share of the distance, in the true unit."""
    who = [int(np.bincount(truth[told.person == number]).argmax()) for number in range(told.person.max() + 1)]
    return np.linalg.norm(told.bodies.root * unit_m - people.translation[who], axis=1) / people.translation[who, 2]


def same_groups(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one, other[:, None] == other)


def test_who_is_who_the_places_and_the_scale(
    three_views: tuple[PeopleSeen, np.ndarray], told: PeopleTold, people: PosedPeople
) -> None:
    """Three adults, three views, 2 px: with assumed heights the scale is as good as these."""
    seen, truth = three_views
    assert same_groups(told.person, truth) and told.used.all()
    assert place_errors(told, people, truth, 0.4).max() < 0.02
    mean_height = float(people.stature.mean())
    assert told.scale.metres_per_unit == pytest.approx(0.4 * ADULTS.mean / mean_height, rel=0.04)
    assert 0.05 < told.scale.sd < 0.06 and told.scale.people == 3
    apart = np.linalg.norm(told.bodies.pixels - seen.targets.pixels, axis=-1)
    assert np.median(apart) < 4


def test_a_known_height_gives_the_scale_to_a_few_percent(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    height = float(people.stature.mean())
    seen, truth = people_seen(skeleton, people, ring(0, 20), unit_m=3.0, stature=(height, 0.005))
    told = people_in_views(skeleton, seen, AssumedHeight(height, 0.0, given=True))
    assert same_groups(told.person, truth)
    assert told.scale.metres_per_unit == pytest.approx(3.0, rel=0.04) and told.scale.sd < 0.05
    assert place_errors(told, people, truth, 3.0).max() < 0.03


def test_a_scene_in_metres_keeps_its_scale(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    seen, truth = people_seen(skeleton, people, ring(0, 25, 70, 180), noise_px=2)
    told = people_in_views(skeleton, seen, ADULTS, scale=1.0)
    assert same_groups(told.person, truth)
    assert np.all(told.bodies.scale == 1) and place_errors(told, people, truth, 1).max() < 0.02
    assert np.abs(told.bodies.stature / people.stature[np.unique(truth[:3])] - 1).max() < 0.12


def test_similarities_of_the_scene_change_nothing(
    skeleton: AnnySkeleton, three_views: tuple[PeopleSeen, np.ndarray], told: PeopleTold
) -> None:
    seen, _ = three_views
    factor, turn, shift = 37.0, rotation_from_rotvec(np.array([0.4, -1.1, 0.3])), np.array([5.0, -2.0, 9.0])
    world_from_cam = inverse(seen.cam_from_world)
    moved = from_rotation_translation(
        turn @ world_from_cam[:, :3, :3], factor * (world_from_cam[:, :3, 3] @ turn.T) + shift
    )
    other = people_in_views(skeleton, replace(seen, cam_from_world=inverse(moved)), ADULTS)
    assert np.array_equal(other.person, told.person)
    assert other.scale.metres_per_unit == pytest.approx(told.scale.metres_per_unit / factor, rel=1e-3)
    expected = factor * told.bodies.landmarks_world() @ turn.T + shift
    assert np.abs(other.bodies.landmarks_world() - expected).max() < 2e-3 * factor


def test_gradients(skeleton: AnnySkeleton, three_views: tuple[PeopleSeen, np.ndarray]) -> None:
    seen, truth = three_views
    rng = np.random.default_rng(3)
    depth = np.where(np.arange(len(seen)) % 2, 11.0, np.nan)
    shape = np.tile(skeleton.mean_shape, (3, 1))
    observations = PeopleObservations(
        truth,
        seen.cam_from_world,
        seen.targets,
        depth,
        np.full(len(seen), 0.1),
        np.full(3, 1.7),
        np.full(3, 0.1),
        shape,
    )
    family = skeleton.family(shape)
    free = shape[:, skeleton.shape_columns]
    hinges = hinge_axes(skeleton, family.offsets(free))
    problem = WorldFitProblem(skeleton, family, observations, hinges, FitConfig(robust=20), True)
    rotations = rotation_from_rotvec(rng.normal(size=(3, len(FREE_JOINTS), 3)) * 0.5)
    state = WorldBodyState(rotations, free, rng.normal(size=(3, 3)) + np.array([0, 0, 11]), np.log([0.3, 0.4, 0.5]))
    cost, gradient, matrix = problem.linearise(state)
    assert np.isfinite(cost).all() and np.allclose(cost, problem.cost(state))
    assert np.allclose(matrix, matrix.transpose(0, 2, 1))
    step = 1e-6
    for number in range(WIDTH):
        move = np.zeros_like(gradient)
        move[:, number] = step
        numeric = (problem.cost(state.moved(move)) - problem.cost(state.moved(-move))) / (4 * step)
        assert np.allclose(numeric, gradient[:, number], rtol=1e-5, atol=1e-4 * np.abs(gradient).max())


def test_one_person_in_one_view_and_a_stranger(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    """Person 2 is in the first view only: the others tell the scale that places it."""
    seen, truth = people_seen(skeleton, people, ring(0, 30), unit_m=2.0, missing=((1, 2),))
    told = people_in_views(skeleton, seen, ADULTS)
    assert same_groups(told.person, truth)
    assert told.scale.people == 2
    assert place_errors(told, people, truth, told.scale.metres_per_unit).max() < 0.12


def test_cameras_in_one_place_tell_no_scale(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    turned = ring(0, 8)
    turned[1, :3, 3] = 0
    seen, truth = people_seen(skeleton, people, turned)
    told = people_in_views(skeleton, seen, ADULTS)
    assert told.bodies is None and told.scale is None
    metric = people_in_views(skeleton, seen, ADULTS, scale=1.0)
    assert same_groups(metric.person, truth)
    # points of the scene on the bodies tell it all the same
    depth = people.translation[truth, 2] / 5.0
    with_points = replace(seen, depth=depth, depth_sd=np.full(len(seen), 0.03))
    told = people_in_views(skeleton, with_points, ADULTS)
    mean_height = float(people.stature.mean())
    assert told.scale is not None
    assert told.scale.metres_per_unit == pytest.approx(5.0 * ADULTS.mean / mean_height, rel=0.06)


def test_a_camera_that_looks_away_sees_somebody_else(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    """The body of a view that the first camera's people are behind is another person, and nothing is not finite."""
    poses = ring(0, 30, 0)
    poses[2] = from_rotation_translation(rotation_from_rotvec(np.array([0, np.pi, 0])), np.zeros(3)) @ poses[0]
    seen, truth = people_seen(skeleton, people, poses[:2])
    extra = replace(seen, cam_from_world=np.concatenate([seen.cam_from_world, poses[2:]]), view=np.append(seen.view, 2))
    rows = np.append(np.arange(len(seen)), 0)
    extra = replace(
        extra,
        targets=seen.targets[rows],
        single=seen.single[rows],
        depth=np.full(len(rows), np.nan),
        depth_sd=np.full(len(rows), np.nan),
    )
    told = people_in_views(skeleton, extra, ADULTS, scale=1.0)
    assert same_groups(told.person, np.append(truth, 99))
    assert np.isfinite(told.bodies.root).all() and np.isfinite(told.bodies.cost).all()
    behind = projected(told.bodies, np.array([0]), poses[2:], seen.targets.K[:1])
    assert np.isnan(behind).all()


def test_a_child_among_adults_is_told_by_the_scene(skeleton: AnnySkeleton, people: PosedPeople) -> None:
    """Person 0 as a child of two thirds of the size, at its own place."""
    size = 0.68
    landmarks, translation = people.landmarks.copy(), people.translation.copy()
    landmarks[0] = translation[0] + size * (landmarks[0] - translation[0])
    stature = people.stature.copy()
    stature[0] *= size
    family = replace(people, landmarks=landmarks, stature=stature)
    seen, truth = people_seen(skeleton, family, ring(0, 40, -30))
    told = people_in_views(skeleton, seen, ADULTS, scale=1.0)
    assert same_groups(told.person, truth)
    who = int(told.person[truth == 0][0])
    assert told.bodies.stature[who] == pytest.approx(stature[0], rel=0.08)
    assert (np.delete(told.bodies.stature, who) > 1.5).all()


def test_the_scale_of_several_people() -> None:
    scales, sds = np.array([2.0, 2.1, 1.9, 2.05, 8.0]), np.full(5, 0.06)
    found = scale_of_people(scales, sds, ADULTS, 0.005)
    assert found.metres_per_unit == pytest.approx(2.0, rel=0.06) and found.people == 5
    assert found.sd >= ADULTS.sd / ADULTS.mean
    exact = scale_of_people(scales[:1], np.array([0.01]), AssumedHeight(1.8, 0, given=True), 0.005)
    assert exact.metres_per_unit == pytest.approx(2.0) and exact.sd == pytest.approx(0.01)
    assert scale_of_people(scales, np.full(5, 0.3), ADULTS, 0.005) is None


def test_people_in_no_view(skeleton: AnnySkeleton) -> None:
    empty = SeenBodies(
        np.zeros(0, int),
        np.zeros((0, 4, 4)),
        np.zeros((0, 3, 3)),
        *(np.zeros((0, len(LANDMARKS), size)) for size in (3, 2)),
        np.zeros((0, len(LANDMARKS))),
        np.zeros(0),
        np.zeros(0),
    )
    assert identify(empty).scale is None and len(identify(empty).person) == 0
    one, count = np.ones(1), len(LANDMARKS)
    points, weights = np.ones((1, count, 3)), np.ones((1, count))
    targets = FitTargets(one, one, np.eye(3)[None], points[..., :2], weights, points, weights)
    with pytest.raises(ValueError, match="needs an observation"):
        PeopleObservations(np.array([1]), np.eye(4)[None], targets, one, one, np.ones(2), np.ones(2), np.ones((2, 6)))
