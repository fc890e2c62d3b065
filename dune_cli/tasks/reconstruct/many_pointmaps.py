"""N photos to a scene by a two-view model: pairwise metric point maps, aligned globally, and dense points of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.cameras import project
from dune_cli.geometry.global_alignment import AlignConfig, Alignment, Known, PairPoints, align, anchor_points
from dune_cli.geometry.poses import inverse, transform_points, vector_angle
from dune_cli.geometry.world_offset import removed, world_offset
from dune_cli.io.names import relative_names
from dune_cli.io.photos import PhotoFacts
from dune_cli.io.work_folder import WorkFolder
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct import pairing
from dune_cli.tasks.reconstruct.lengths import by_baseline, check_apart
from dune_cli.tasks.reconstruct.merged_maps import merged_map
from dune_cli.tasks.reconstruct.pair_maps import Encoded, PairMaker
from dune_cli.tasks.reconstruct.scene import LARGE, Pair, PointMap, Scene, View

if TYPE_CHECKING:
    from dune_cli.models.two_view import TwoViewModel

NOWHERE = np.full((4, 4), np.nan)
OF_POSES = "lengths are those of --poses"
Intrinsics = Sequence[tuple[np.ndarray, str]]
Finish = Callable[[Alignment, PairPoints], Alignment]


@dataclass(frozen=True)
class ManyPointMapsConfig:
    """`size_px`: long side of the network input (None: the model's own). `min_confidence` of points, from 1 up.
    `baseline` between the first two photos in metres, where it is known. `pairs` auto | retrieval | sequential | all,
    or a file; `neighbours` of a photo; `ordered`: the photos follow one another. `fixed_poses`: known poses stay as
    they are, else they are priors. `seed` of every random choice."""

    size_px: int | None = None
    min_confidence: float = 1.5
    baseline: float | None = None
    pairs: str = "auto"
    neighbours: int = pairing.NEIGHBOURS
    ordered: bool = False
    fixed_poses: bool = True
    seed: int = 0


def reconstruct(
    paths: Sequence[Path],
    intrinsics_of: Callable[[Sequence[PhotoFacts]], Intrinsics],
    model: TwoViewModel,
    config: ManyPointMapsConfig,
    work: WorkFolder,
    run: Run,
    known_poses: Mapping[Path, np.ndarray] | None = None,
    finish: Finish | None = None,
) -> Scene:
    """The scene of two photos or more, with dense points.

    `intrinsics_of` gives (K, source) of each; a "default" K is estimated. `known_poses`: photo -> `world_from_cam`;
    then the world is theirs, less the scene's `world_offset` where coordinates are large. `finish` may better the
    aligned cameras, as a bundle adjustment does. Photos are encoded once, and where pairs are retrieved, compared by
    the means of those tokens. Raises JobFailed where no two photos' maps agree, UserError for pairs that do not fit.
    """
    maker = PairMaker(model, config.size_px or model.size, work)
    with run.stage("encode"):
        every = maker.encode(paths)
    own = _different(every)
    if len(own) < 2:
        raise JobFailed(f"all {len(every)} photos are the same picture; take photos from different places")
    photos = [every[index] for index in own]
    intrinsics = intrinsics_of([photo.facts for photo in every])
    plan = plan_pairs(photos, config)
    console.note(f"{len(every)} photos, {len(plan.pairs)} pairs ({plan.way}), each decoded in both orders")
    with run.stage("decode"):
        data = maker.decode(photos, plan.pairs, config.min_confidence)
    joined = sorted({view for pair in plan.pairs for view in pair})
    if len(joined) < len(photos):  # a user's list of pairs need not name all
        own, photos = [own[v] for v in joined], [photos[v] for v in joined]
        data = _renumbered(data, joined)
    if not (data.confidence > 0).any():
        raise JobFailed(
            f"no point of any pair reaches the confidence {config.min_confidence:g}: the photos may not show one "
            "place; take photos that overlap more, or lower --min-confidence"
        )
    given = known_poses or {}
    check_apart(given)
    offset = world_offset(np.array([pose[:3, 3] for pose in given.values()]))
    given = {path: removed(pose, offset) for path, pose in given.items()}
    known = _known(photos, [intrinsics[i] for i in own], given, config.fixed_poses)
    with run.stage("align"):
        found = align(data, known, AlignConfig(seed=config.seed))
        if found is None or np.count_nonzero(found.registered) < 2:
            raise JobFailed(
                f"the point maps of no two of the {len(photos)} photos agree; take photos that overlap by half or "
                "more, or use --method matches"
            )
        found = finish(found, data) if finish is not None else found
    with run.stage("dense"):
        maps = [merged_map(maker, photos, data, found, v, config.min_confidence) for v in range(len(photos))]
    views = _views(every, own, intrinsics, found, maps)
    scene = Scene(
        method="pointmap",
        views=views,
        pairs=_pairs(data, found, own),
        sparse=None,
        scale="arbitrary" if known.has_pose.any() else "metric",
        scale_note=OF_POSES if known.has_pose.any() else None,
        reprojection_error_px=_reprojection_error_px(data, found),
        parallax_deg=_parallax_deg(data, found),
        sources=(model.source,),
        components=tuple(tuple(own[v] for v in group) for group in found.groups) if len(found.groups) > 1 else (),
        world="that of --poses" if known.has_pose.any() else None,
        world_offset=offset,
        notes=() if offset is None else (LARGE,),
    )
    if not any(view.dense is not None and view.dense.valid.any() for view in views):
        raise JobFailed("no point lies on a surface: the model's point maps are noise for these photos")
    return scene if config.baseline is None else _scaled(scene, config.baseline, bool(known.has_pose.any()))


def plan_pairs(photos: Sequence[Encoded], config: ManyPointMapsConfig) -> pairing.PairPlan:
    """Which photos are decoded together."""
    count, way = len(photos), config.pairs
    if way == "all" or (way == "auto" and count <= pairing.ALL_UP_TO):
        return pairing.PairPlan(pairing.every_pair(count), "all")
    if way == "sequential":
        return pairing.PairPlan(pairing.sequential_pairs(count, config.neighbours), "sequential")
    if way not in pairing.WAYS:
        return pairing.PairPlan(pairing.read_pairs(way, [photo.facts.path for photo in photos]), f"from {way}")
    alike = pairing.retrieval_pairs(np.stack([photo.pooled for photo in photos]), config.neighbours)
    if way == "auto" and config.ordered:
        both = {*alike, *pairing.sequential_pairs(count, config.neighbours)}
        return pairing.PairPlan(sorted(both), "retrieval and sequential")
    return pairing.PairPlan(alike, "retrieval")


def _different(photos: Sequence[Encoded]) -> list[int]:
    """Without the photos whose file is that of an earlier one."""
    first: dict[str, int] = {}
    return [i for i, photo in enumerate(photos) if first.setdefault(photo.facts.sha256, i) == i]


def _renumbered(data: PairPoints, joined: Sequence[int]) -> PairPoints:
    place = {view: index for index, view in enumerate(joined)}
    pairs = np.array([[place[i], place[j]] for i, j in data.pairs.tolist()], np.int64)
    return PairPoints(pairs, data.points, data.confidence, data.anchors[list(joined)], data.sizes[list(joined)])


def _known(
    photos: Sequence[Encoded], intrinsics: Intrinsics, poses: Mapping[Path, np.ndarray], fixed_poses: bool
) -> Known:
    nothing = Known.nothing(len(photos))
    for index, (photo, (K, source)) in enumerate(zip(photos, intrinsics)):
        if source != "default":
            nothing.K[index] = K
        if photo.facts.path in poses:
            nothing.world_from_cam[index] = poses[photo.facts.path]
    return Known(nothing.K, nothing.world_from_cam, poses_are_priors=not fixed_poses)


def _views(
    every: Sequence[Encoded],
    own: Sequence[int],
    intrinsics: Intrinsics,
    found: Alignment,
    maps: Sequence[PointMap | None],
) -> tuple[View, ...]:
    place = {index: v for v, index in enumerate(own)}
    called = relative_names([photo.facts.path for photo in every])
    first = {photo.facts.sha256: i for i, photo in reversed(list(enumerate(every)))}
    views = []
    for index, (photo, (K, source)) in enumerate(zip(every, intrinsics)):
        facts, v = photo.facts, place.get(index)
        pose, reason, dense = NOWHERE, None, None
        if v is None:
            other = first[facts.sha256]
            alone = "it is in none of the pairs"
            reason = f"it is the same picture as {called[other]}" if other != index else alone
        elif not found.registered[v]:
            group = next((g for g in found.groups[1:] if v in g), ())
            names = ", ".join(called[own[u]] for u in group if u != v)
            reason = (
                f"it hangs together only with {names}, and not with the photos that were placed"
                if names
                else "its point maps agree with those of no other photo"
            )
        else:
            pose, dense = found.world_from_cam[v], maps[v]
            if source == "default":
                K, source = found.K[v], "estimated"
        views.append(
            View(
                called[index],
                facts.width,
                facts.height,
                K,
                source,
                pose,
                reason is None,
                dense,
                0.0,
                reason,
                facts.orientation,
            )
        )
    return tuple(views)


def _pairs(data: PairPoints, found: Alignment, own: Sequence[int]) -> tuple[Pair, ...]:
    """Both orders of a pair as one: the anchors that it was asked for, and those that agree."""
    counts: dict[tuple[int, int], list[float]] = {}
    for (i, j), sure, share in zip(data.pairs.tolist(), data.confidence, found.pair_inliers):
        total = counts.setdefault((own[min(i, j)], own[max(i, j)]), [0, 0.0])
        used = int((sure > 0).sum())
        total[0] += used
        total[1] += share * used
    return tuple(Pair(images, int(used), int(inliers)) for images, (used, inliers) in sorted(counts.items()))


def _told(data: PairPoints, found: Alignment) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """(first, second, points of the second view's anchors in the world, their pixels) of pairs of registered views,
    for anchors that agree."""
    placed = anchor_points(found, data.anchors)
    told = []
    for row, (i, j) in enumerate(data.pairs.tolist()):
        if not (found.registered[i] and found.registered[j]):
            continue
        world = transform_points(found.world_from_cam[i], found.pair_scale[row] * data.points[row, 1])
        size = np.linalg.norm(world - found.world_from_cam[i, :3, 3], axis=1)
        near = np.linalg.norm(world - placed[j], axis=1) < AlignConfig().tolerance * size
        keep = near & (data.confidence[row, 1] > 0)
        if keep.any():
            told.append((i, j, world[keep], data.anchors[j][keep]))
    return told


def _reprojection_error_px(data: PairPoints, found: Alignment) -> float:
    squares = []
    for _, j, world, pixels in _told(data, found):
        points = transform_points(inverse(found.world_from_cam[j]), world)
        off = project(points, found.K[j]) - pixels
        squares.append((off**2).sum(-1)[points[:, 2] > 0])
    return float(np.sqrt(np.concatenate(squares).mean())) if squares else float("nan")


def _parallax_deg(data: PairPoints, found: Alignment) -> float:
    centres = found.world_from_cam[:, :3, 3]
    angles = [vector_angle(world - centres[i], world - centres[j]) for i, j, world, _ in _told(data, found)]
    return float(np.degrees(np.median(np.concatenate(angles)))) if angles else 0.0


def _scaled(scene: Scene, baseline: float, poses_given: bool) -> Scene:
    if poses_given:
        raise UserError("--poses and --baseline both say how long things are; give one of them")
    return by_baseline(scene, baseline, None)
