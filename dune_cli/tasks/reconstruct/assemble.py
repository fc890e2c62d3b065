"""A mapped reconstruction as a scene: views in the order of the photos, reasons for those that are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli.geometry.poses import inverse, transform_points, vector_angle
from dune_cli.io.names import relative_names
from dune_cli.io.photos import PhotoFacts
from dune_cli.provenance import Source
from dune_cli.tasks.reconstruct.correspondences import Correspondences
from dune_cli.tasks.reconstruct.mapping import Mapped
from dune_cli.tasks.reconstruct.scene import Calibration, Observations, Scene, SparsePoints, View
from dune_cli.tasks.reconstruct.verification import MIN_INLIERS, Lens, Verified

NO_LENGTHS = "photos do not tell lengths: the median step between cameras that moved is 1; give --baseline METRES"

OF_POSES = "lengths are those of --poses"
NOWHERE = np.full((4, 4), np.nan)


def assemble(
    facts: Sequence[PhotoFacts],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    lens_of: Sequence[int],
    lenses: Sequence[Lens],
    found: Correspondences,
    verified: Verified,
    models: Sequence[Mapped],
    same: Mapping[int, int],
    source: Source,
    scale: float,
    world_given: bool,
) -> Scene:
    """The scene of the largest of `models`. `same`: photos that are copies -> of which one; `scale`: pixels of a photo
    per matched pixel. The world becomes the first placed camera, unless it is `world_given`, the known poses' own."""
    best = models[0]
    order = sorted(best.world_from_cam)
    new_from_old = np.eye(4) if world_given else inverse(best.world_from_cam[order[0]])
    groups = photo_groups(len(facts), verified, models)
    names = relative_names([photo.path for photo in facts])
    views = []
    for index, photo in enumerate(facts):
        K, told = intrinsics[index]
        radial, pose, reason, calibration = 0.0, NOWHERE, None, None
        if index in best.world_from_cam:
            pose = new_from_old @ best.world_from_cam[index] if index != order[0] or world_given else np.eye(4)
            if not lenses[lens_of[index]].fixed:
                before = float(np.sqrt(K[0, 0] * K[1, 1]))
                (K, radial), told = best.cameras[lens_of[index]], "estimated"
                if lens_of[index] in best.lens_sd:
                    calibration = Calibration(before, *best.lens_sd[lens_of[index]], best.modes[index])
                    calibration = calibration.moved(new_from_old[:3, :3])
        else:
            reason = why_missing(index, names, verified, groups, same, set(order))
        name, width, height = names[index], photo.width, photo.height
        view = View(name, width, height, K, told, pose, reason is None, None, radial, reason, photo.orientation)
        views.append(replace(view, calibration=calibration))
    points = transform_points(new_from_old, best.points_world)
    observations, shades, amount = [], np.zeros((len(points), 3)), np.zeros(len(points))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for index in range(len(facts)):
        point, keypoint = best.observations.get(index, nothing)
        observations.append((point, found.keypoints[index][keypoint]))
        np.add.at(shades, point, found.colors[index][keypoint])
        np.add.at(amount, point, 1)
    sparse = SparsePoints(
        points,
        np.rint(shades / np.maximum(amount, 1)[:, None]).astype(np.uint8),
        (1 / (1 + (best.errors_px / scale) ** 2)).astype(np.float32),
        tuple(observations),
    )
    return Scene(
        method="matches",
        views=tuple(views),
        pairs=tuple(verified.pairs()),
        sparse=sparse,
        scale="arbitrary",
        scale_note=OF_POSES if world_given else NO_LENGTHS,
        reprojection_error_px=float(np.sqrt(np.mean(best.errors_px**2))) if len(points) else float("nan"),
        parallax_deg=_parallax_deg(points, views, observations),
        sources=(source,),
        components=tuple(groups) if len(groups) > 1 else (),
        world="that of --poses" if world_given else None,
    )


def why_missing(
    index: int,
    names: Sequence[str],
    verified: Verified,
    groups: Sequence[tuple[int, ...]],
    same: Mapping[int, int],
    placed: set[int],
) -> str:
    """Why a photo has no pose, in one line. `names` of all photos."""
    if index in same:
        return f"it is the same picture as {names[same[index]]}"
    others = {a if b == index else b: pair for pair in verified.counts for a, b in (pair,) if index in pair}
    if not others:
        return "no match: it was compared with no other photo"
    turned = [o for o, pair in others.items() if pair in verified.turned]
    if turned:
        best = max(turned, key=lambda o: verified.counts[others[o]][1])
        return f"the camera only turned between it and {names[best]}: no parallax"
    agreeing = {o: verified.counts[pair][1] for o, pair in others.items() if pair in verified.geometry}
    near = {o: inliers for o, inliers in agreeing.items() if o in placed}
    if near:
        best = max(near, key=near.__getitem__)
        return f"no common tracks: {near[best]} matches agree with {names[best]}, but too few are points in the scene"
    if agreeing:
        group = next((g for g in groups if index in g), tuple(agreeing))
        others_of = ", ".join(names[o] for o in group if o != index)
        return f"it hangs together only with {others_of}, and not with the photos that were placed"
    best = max(others, key=lambda o: verified.counts[others[o]])
    fixed = {o: verified.fixed.get(pair, 0) for o, pair in others.items()}
    most = max(fixed, key=fixed.__getitem__)
    if fixed[most] > verified.counts[others[best]][1]:
        return f"what it shares with {names[most]} lies at the same pixels of both photos (a caption, a logo, a border)"
    matches, inliers = verified.counts[others[best]]
    if matches < MIN_INLIERS:
        return f"no match: at most {matches} matches, with {names[best]}"
    return f"too few inliers: {inliers} of {matches} matches with {names[best]}, the best, agree on a motion"


def photo_groups(count: int, verified: Verified, models: Sequence[Mapped]) -> list[tuple[int, ...]]:
    """Photos that hang together: those of the first model, those of the others, and what verified pairs join of the
    rest without joining it to one of these."""
    groups = []
    taken: set[int] = set()
    for model in models:
        own = tuple(sorted(set(model.world_from_cam) - taken))
        if len(own) > 1:
            groups.append(own)
            taken |= set(own)
    edges = np.array(list(verified.geometry), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    total, label = connected_components(graph, directed=False)
    for group in range(total):
        members = tuple(np.flatnonzero(label == group).tolist())
        if len(members) > 1 and not taken & set(members):
            groups.append(members)
    return groups


def _parallax_deg(points: np.ndarray, views: Sequence[View], observations: Sequence[Observations]) -> float:
    """Median over the points of the widest angle between their first view and another one, in degrees."""
    first = np.full((len(points), 3), np.nan)
    widest = np.zeros(len(points))
    for view, (index, _) in zip(views, observations):
        rays = view.world_from_cam[:3, 3] - points[index]
        fresh = np.isnan(first[index, 0])
        first[index[fresh]] = rays[fresh]
        np.maximum.at(widest, index, vector_angle(first[index], rays))
    return float(np.degrees(np.median(widest))) if len(points) else 0.0
