"""People standing in a scene: found in every registered view, told apart, and fitted to all of their views.

Without a scene in metres the people give the scale: each person's size in the scene's unit against an assumed or given
standing height. docs/models/people.md, "People in a scene", describes the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.fitting import FittedBodies, fit_anny
from dune_cli.bodies.found_joints import (
    OF_BODY,
    SEEN,
    TO_BODY,
    FoundJoints,
    find_in_photo,
    fit_confidence,
    landmark_targets,
)
from dune_cli.bodies.people_in_views import PeopleSeen, PeopleTold, people_in_views, projected
from dune_cli.bodies.people_scale import PeopleScale
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.bodies.statures import AssumedHeight, assumed_height, standing_heights
from dune_cli.geometry.cameras import pixel_grid, resize_transform, transform_pixels
from dune_cli.geometry.poses import inverse, rotvec_from_rotation, transform_points, vector_angle
from dune_cli.io.photos import read_photo
from dune_cli.io.rendering import rasterise
from dune_cli.models.people_poses import BLAZEPOSE_NAMES, PeopleNetwork
from dune_cli.provenance import Run
from dune_cli.sfm.scene import Scene, View

MIN_PARALLAX_DEG = 2.0  # between the rays to a person, from which two views tell its place
_RASTER_PX = 256  # long side of the picture of a body, in which the scene's points on it are looked up
_MIN_POINTS, _MAX_POINTS, _MAX_SPREAD = 8, 60_000, 0.15  # of the scene's points on a body; deviation of their depths
_SURFACE_M = 0.08  # how well a body's surface tells the depth of its root
_AT_ONCE = 64  # bodies of one pass
_UNLIKELY = 2.5  # deviations of the people's scale from that of a scene in metres, which a note tells of


@dataclass(frozen=True)
class Sighting:
    """A person in a view, by its index in the scene. residual_px: mean distance of the body's landmarks from the joints
    seen, in the view's pinhole camera; None where the person has no place. used: whether the body was fitted to this
    view. joints_seen: by BlazePose's names."""

    view: int
    score: float
    residual_px: float | None
    used: bool
    joints_seen: tuple[str, ...]


@dataclass(frozen=True)
class PlacedBody:
    """A body in the world of a scene, float64, lengths in the scene's unit but for `height` (standing, metres).

    rotvec (J, 3): of the body's joints, the root's into the world. translation (3,): the root, which is what is added
    to the posed body times `size`, the scene's units of one metre. shape: by name. joints3d (J, 3), vertices (V, 3).
    """

    rotvec: np.ndarray
    translation: np.ndarray
    shape: dict[str, float]
    height: float
    size: float
    joints3d: np.ndarray
    vertices: np.ndarray

    def scaled(self, factor: float) -> PlacedBody:
        """With all lengths of the world times `factor`."""
        lengths = ("translation", "size", "joints3d", "vertices")
        return replace(self, **{name: getattr(self, name) * factor for name in lengths})


@dataclass(frozen=True)
class ScenePerson:
    """A person of a scene. placed_by: "views" (two or more that differ in direction), "points" (the scene's points on
    the body), "height" (one direction: the distance follows from the standing height); None, as `body`, where nothing
    tells the place."""

    score: float
    fit_confidence: float
    sightings: tuple[Sighting, ...]
    placed_by: str | None = None
    body: PlacedBody | None = None


@dataclass(frozen=True)
class PeopleInScene:
    """The people, by their first view from left to right; the body of their parameters; `scale`: of the scene by their
    heights, None where these do not tell it."""

    people: tuple[ScenePerson, ...]
    body: Anny
    assumed: AssumedHeight
    scale: PeopleScale | None
    notes: tuple[str, ...]


def add_people(
    scene: Scene, paths: Sequence[Path], network: PeopleNetwork, heights: Sequence[float] | None, run: Run
) -> tuple[Scene, PeopleInScene]:
    """The people of a scene's registered views, and the scene: in metres by the people, where it was not, where they
    tell it, and where its world is not that of given poses.

    paths: of the scene's photos. heights: standing, in metres, one for all; None: assumed.
    """
    body = load_anny("light")
    skeleton = AnnySkeleton(body)
    assumed = assumed_height(heights)
    scene = replace(scene, sources=(*scene.sources, network.source, body.source))
    with run.stage("people"):
        joints, view, inside, notes = _find(scene, paths, network)
        if not len(joints):
            notes.append("--people: nobody was found in the photos")
            return scene, PeopleInScene((), body, assumed, None, tuple(notes))
        seen = _seen(scene, skeleton, joints, view, heights)
        told = people_in_views(skeleton, seen, assumed, 1.0 if scene.scale == "metric" else None)
        people = list(_people(body, joints, inside, seen, told))
    notes += _notes(scene, people, told.scale, assumed)
    if scene.scale != "metric" and told.scale is not None:
        scene, people = _in_metres(scene, people, told.scale, assumed)
    return scene, PeopleInScene(tuple(people), body, assumed, told.scale, tuple(notes))


# --- what the views show ---


def _find(
    scene: Scene, paths: Sequence[Path], network: PeopleNetwork
) -> tuple[FoundJoints, np.ndarray, np.ndarray, list[str]]:
    """Joints of O people in pixels of their views' pinhole cameras, the view (O,) of each, whether the photo has them
    (O, 33), and notes."""
    sizes = {"pixels": (33, 2), "confidence": (33,), "visibility": (33,), "world": (33, 3)}
    parts = [FoundJoints(**{one.name: np.zeros((0, *sizes.get(one.name, ()))) for one in fields(FoundJoints)})]
    inside, views, notes = [np.zeros((0, len(BLAZEPOSE_NAMES)), bool)], [], []
    for index in scene.registered:
        view = scene.views[index]
        if view.camera.is_panorama:
            notes.append(f"--people: {view.image} is a panorama, in which people are not looked for")
            continue
        joints = find_in_photo(network, read_photo(paths[index]).rgb)
        size = np.array([view.width, view.height])
        inside.append(((joints.pixels > -0.5) & (joints.pixels < size - 0.5)).all(-1))
        parts.append(_undistorted(joints, view))
        views += [index] * len(joints)
    columns = {one.name: [getattr(part, one.name) for part in parts] for one in fields(FoundJoints)}
    joined = FoundJoints(**{name: np.concatenate(values) for name, values in columns.items()})
    return joined, np.array(views, np.int64), np.concatenate(inside), notes


def _undistorted(joints: FoundJoints, view: View) -> FoundJoints:
    """The joints at the pixels of the view's pinhole camera K. One without such a pixel is not seen."""
    pixels = view.camera.undistort(joints.pixels)
    known = np.isfinite(pixels).all(-1)
    return replace(
        joints,
        pixels=np.where(known[..., None], pixels, 0),
        confidence=joints.confidence * known,
        visibility=joints.visibility * known,
    )


def _seen(
    scene: Scene, skeleton: AnnySkeleton, joints: FoundJoints, view: np.ndarray, heights: Sequence[float] | None
) -> PeopleSeen:
    """A body for each person of each view, and the scene's points on it."""
    K = np.stack([scene.views[index].K for index in view])
    poses = inverse(np.stack([scene.views[index].world_from_cam for index in view]))
    stature, deviation, shape = standing_heights(skeleton, heights, len(view))
    targets = landmark_targets(joints, K, stature, deviation)
    rows = np.split(np.arange(len(view)), np.arange(_AT_ONCE, len(view), _AT_ONCE))
    single = FittedBodies.joined([fit_anny(skeleton, targets[part], shape=shape[part]) for part in rows])
    return PeopleSeen(view, poses, targets, single, *_depths_by_points(scene, skeleton.body, view, single))


def _depths_by_points(
    scene: Scene, body: Anny, view: np.ndarray, single: FittedBodies
) -> tuple[np.ndarray, np.ndarray]:
    """(O,) the depth of each root in the scene's unit, and the deviation of its logarithm, by the points of the scene
    that the view sees on the body; NaN where these are too few or disagree."""
    depth, depth_sd = np.full(len(view), np.nan), np.full(len(view), np.nan)
    faces = body.faces.numpy()
    for index in np.unique(view):
        pixels, points_z = _points_in_view(scene, int(index))
        one, rows = scene.views[index], np.flatnonzero(view == index)
        small = min(1.0, _RASTER_PX / max(one.width, one.height))
        small_from_photo = resize_transform(small)
        width, height = (max(1, round(side * small)) for side in (one.width, one.height))
        x, y = np.rint(transform_pixels(small_from_photo, pixels)).astype(int).T
        kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y, points_z = x[kept], y[kept], points_z[kept]
        if len(points_z) < _MIN_POINTS:
            continue
        surfaces = [
            rasterise(_posed(body, single, row)[0], faces, small_from_photo @ one.K, width, height).depth
            for row in rows
        ]
        at = np.stack(surfaces)[:, y, x]  # (people, points), infinite beside a body
        nearest = at.argmin(0)
        for number, row in enumerate(rows):
            on = np.isfinite(at[number]) & (nearest == number)
            if np.count_nonzero(on) < _MIN_POINTS:
                continue
            logs = np.log(points_z[on] / at[number, on])
            middle = float(np.median(logs))
            spread = 1.4826 * float(np.median(np.abs(logs - middle)))
            if spread < _MAX_SPREAD:
                depth[row] = single.translation[row, 2] * np.exp(middle)
                depth_sd[row] = np.hypot(_SURFACE_M / single.translation[row, 2], spread / 2)
    return depth, depth_sd


def _points_in_view(scene: Scene, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) in the view's pinhole camera K, and depths (N,) in the scene's unit, of what the view sees: of its
    dense map, else of the matched points."""
    view = scene.views[index]
    depth = view.depth
    if view.dense is not None and depth is not None and np.count_nonzero(view.dense.measured) >= _MIN_POINTS:
        pick = np.flatnonzero(view.dense.measured)
        pick = pick[:: max(1, len(pick) // _MAX_POINTS)]
        grid = pixel_grid(*depth.shape).reshape(-1, 2)[pick]
        return transform_pixels(view.dense.image_from_map, grid), depth.ravel()[pick]
    if scene.sparse is None:
        return np.zeros((0, 2)), np.zeros(0)
    points, pixels = scene.sparse.observations[index]
    pixels = view.camera.undistort(pixels)
    z = transform_points(inverse(view.world_from_cam), scene.sparse.points_world[points])[:, 2]
    known = np.isfinite(pixels).all(-1) & (z > 0)
    return pixels[known], z[known]


@torch.inference_mode()
def _posed(body: Anny, bodies: FittedBodies, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and joints (J, 3) of one of the bodies in its camera, metres."""
    posed = body(*(torch.from_numpy(values[row : row + 1]).float() for values in (bodies.rotations, bodies.shape)))
    return tuple(part[0].double().numpy() + bodies.translation[row] for part in (posed.vertices, posed.joints))


# --- the people ---


def _people(
    body: Anny, joints: FoundJoints, inside: np.ndarray, seen: PeopleSeen, told: PeopleTold
) -> Iterator[ScenePerson]:
    """Each person with its sightings and, where it has a place, its body."""
    apart, costs = None, seen.single.cost.copy()
    if told.bodies is not None:
        pixels = projected(told.bodies, told.person, seen.cam_from_world, seen.targets.K)
        apart = np.linalg.norm(pixels[:, TO_BODY] - joints.pixels[:, OF_BODY], axis=-1)
        costs[told.used] = told.bodies.cost
    for number in range(int(told.person.max()) + 1):
        rows = np.flatnonzero(told.person == number)
        sightings, confidence = [], []
        for row in rows:
            shown = (joints.confidence[row] >= SEEN) & inside[row]
            counted = shown[OF_BODY] if shown[OF_BODY].any() else np.ones(len(OF_BODY), bool)
            residual = None if apart is None else float(apart[row, counted].mean())
            sightings.append(
                Sighting(
                    int(seen.view[row]),
                    float(joints.scores[row]),
                    residual if residual is None or np.isfinite(residual) else None,
                    bool(told.used[row]),
                    tuple(name for name, one in zip(BLAZEPOSE_NAMES, shown) if one),
                )
            )
            if told.used[row]:
                confidence.append(fit_confidence(float(costs[row]), float(joints.agreement[row])))
        score = max(one.score for one in sightings)
        person = ScenePerson(score, float(np.mean(confidence)), tuple(sightings))
        if told.bodies is not None:
            own = rows[told.used[rows]]
            placed_by = _placed_by(seen, own, told.bodies.root[number])
            person = replace(person, placed_by=placed_by, body=_placed(body, told, number))
        yield person


def _placed(body: Anny, told: PeopleTold, number: int) -> PlacedBody:
    bodies = told.bodies
    assert bodies is not None
    size = 1 / float(bodies.scale[number])
    with torch.inference_mode():
        rotations, shape = (torch.from_numpy(one[number : number + 1]) for one in (bodies.rotations, bodies.shape))
        posed = body(rotations.float(), shape.float())
    root = bodies.root[number]
    return PlacedBody(
        rotvec_from_rotation(bodies.rotations[number]),
        root,
        dict(zip(body.shape_names, map(float, bodies.shape[number]))),
        float(bodies.stature[number]),
        size,
        root + size * posed.joints[0].double().numpy(),
        root + size * posed.vertices[0].double().numpy(),
    )


def _placed_by(seen: PeopleSeen, rows: np.ndarray, root: np.ndarray) -> str:
    """See `ScenePerson`. rows: the bodies seen that the person was fitted to."""
    centres = inverse(seen.cam_from_world[rows])[:, :3, 3]
    rays = root - centres
    angles = vector_angle(rays[:, None], rays[None])
    if np.degrees(angles.max()) >= MIN_PARALLAX_DEG:
        return "views"
    return "points" if np.isfinite(seen.depth[rows]).any() else "height"


def _in_metres(
    scene: Scene, people: list[ScenePerson], scale: PeopleScale, assumed: AssumedHeight
) -> tuple[Scene, list[ScenePerson]]:
    """The scene and its people in metres; in the world of given poses the note alone."""
    who = "1 person" if scale.people == 1 else f"{scale.people} people"
    how = f"the standing height of {who} ({_height_text(assumed)}), to about {scale.sd:.0%}"
    if scene.world is not None:
        text = f"{scene.scale_note}; one unit is {scale.metres_per_unit:.4g} m by {how}"
        return replace(scene, scale_note=text), people
    factor = scale.metres_per_unit
    scene = scene.scaled(factor, "metric", f"metres are those of {how}")
    return scene, [replace(one, body=one.body and one.body.scaled(factor)) for one in people]


def _height_text(assumed: AssumedHeight) -> str:
    if assumed.given:
        return f"given: {assumed.mean:.2f} m"
    return f"assumed: adults of {assumed.mean:.2f} m, deviation {assumed.sd:.2f} m"


def _notes(scene: Scene, people: list[ScenePerson], scale: PeopleScale | None, assumed: AssumedHeight) -> list[str]:
    single = sum(len(one.sightings) == 1 for one in people)
    word = "person" if len(people) == 1 else "people"
    notes = [f"--people: {len(people)} {word}, {len(people) - single} of them in several views"]
    if scene.scale == "metric":
        if scale is not None and abs(np.log(scale.metres_per_unit)) > _UNLIKELY * scale.sd:
            notes.append(
                f"--people: by their heights ({_height_text(assumed)}) the scene's lengths are to be multiplied by "
                f"{scale.metres_per_unit:.2f}, which was not done: they are children, or the scene's metres are wrong"
            )
    elif scale is None:
        notes.append(
            "--people: nobody could be placed: no two views show the same person from different directions, and no "
            "points of the scene are on their bodies"
        )
    else:
        notes.append(
            f"--people: lengths follow from the people's heights ({_height_text(assumed)}), to about {scale.sd:.0%}; "
            + ("give --baseline for better ones" if assumed.given else "--height or --baseline sets them")
        )
    return notes
