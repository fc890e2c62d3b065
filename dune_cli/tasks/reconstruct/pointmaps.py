"""Two photos to a scene by a two-view model: metric point maps, focal lengths from them, and the second pose by PnP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.absolute_pose import AbsolutePose, estimate_absolute_pose
from dune_cli.geometry.cameras import K_from_focal, focal_from_point_map, pixel_grid, project, transform_pixels
from dune_cli.geometry.depth_maps import depth_edges
from dune_cli.geometry.global_alignment import AlignConfig, Alignment, KnownCameras, PairPoints, align, anchor_points
from dune_cli.geometry.poses import inverse, subtract_world_offset, transform_points, vector_angle, world_offset
from dune_cli.geometry.two_view import parallax_angles
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import Photo, PhotoFacts
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.provenance import Run
from dune_cli.sfm import pairs as pairing
from dune_cli.sfm.scale import check_distinct_centres, scale_by_baseline
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, ImagePair, PointMap, Scene, View
from dune_cli.tasks.reconstruct.pairwise_pointmaps import EncodedPhoto, PairDecoder, fuse_pointmaps

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel


MIN_POINTS = 100
MAX_PNP_POINTS = 20_000
PNP_THRESHOLD_PX = 3.0  # on the network's grid
MIN_INLIER_SHARE = 0.1


@dataclass(frozen=True)
class PointMapConfig:
    """`size_px`: long side of the network input (None: the model's own). `min_confidence` of points, which starts at
    1. `baseline` between the cameras in metres, where it is known. `seed` of the pose's random sampling."""

    size_px: int | None = None
    min_confidence: float = 1.5
    baseline: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class ViewMap:
    """One view's points in some camera's frame (h, w, 3), confidence (h, w), and its pixels in the photo (h, w, 2)."""

    points: np.ndarray
    confidence: np.ndarray
    pixels: np.ndarray

    def confident(self, minimum: float) -> np.ndarray:
        return (self.confidence >= minimum) & np.isfinite(self.points).all(-1)


def reconstruct_pair(
    photos: Sequence[Photo],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    model: TwoViewModel,
    config: PointMapConfig,
    run: Run,
) -> Scene:
    """The scene of two photos with `intrinsics` (K, source) each; a "default" K is replaced by the point maps' own.

    Camera 1's focal comes from its own map, camera 2's from the map of the swapped pair. Raises JobFailed where too few
    points are confident, no focal fits them, or no pose does.
    """
    size_px = config.size_px or model.size
    inputs = [prepare(photo.rgb, size_px, model.patch, model.crop_square_to_4_3) for photo in photos]
    default = [source == "default" for _, source in intrinsics]
    with run.stage("network"):
        maps, own_map2 = predict(model, inputs, swapped=default[1])
    with run.stage("pose"):
        cameras = []
        for photo, (K, source), own, unknown in zip(photos, intrinsics, (maps[0], own_map2), default):
            cameras.append((_estimated_K(photo, own, config.min_confidence), "estimated") if unknown else (K, source))
        pose, used = _second_pose(photos[1], maps[1], cameras[1][0], inputs[1], config)
    cam_from_world = (np.eye(4), pose.cam_from_world)
    views, removed = [], 0
    names = relative_names([photo.path for photo in photos])
    for name, photo, (K, source), one, prepared, to_cam in zip(names, photos, cameras, maps, inputs, cam_from_world):
        depth = transform_points(to_cam, one.points)[..., 2]
        confident = one.confident(config.min_confidence) & (depth > 0)
        edges = depth_edges(depth, confident)
        removed += int(edges.sum())
        colors = np.rint(255 * prepared.image.transpose(1, 2, 0)).astype(np.uint8)
        dense = PointMap(
            one.points, one.confidence, confident & ~edges, colors, np.linalg.inv(prepared.network_from_image)
        )
        views.append(
            View(
                name, photo.width, photo.height, K, source, inverse(to_cam), dense=dense, orientation=photo.orientation
            )
        )
    if not any(view.dense is not None and view.dense.valid.any() for view in views):
        raise JobFailed("no point lies on a surface: the model's point maps are noise for these photos")
    shared = maps[1].points[maps[1].confident(config.min_confidence)]
    scene = Scene(
        method="pointmap",
        views=tuple(views),
        pairs=(ImagePair((0, 1), used, int(pose.inliers.sum())),),
        sparse=None,
        scale="metric",
        scale_note=None,
        reprojection_error_px=pose.reprojection_error_px,
        parallax_deg=float(np.degrees(np.median(parallax_angles(shared, pose.cam_from_world)))),
        sources=(model.source,),
        notes=(f"{removed} points on depth edges left out",) if removed else (),
    )
    if config.baseline is None:
        return scene
    return scale_by_baseline(scene, config.baseline, None)


def predict(model: TwoViewModel, inputs: Sequence[Prepared], swapped: bool) -> tuple[list[ViewMap], ViewMap]:
    """Both views' maps in camera 1's frame, and view 2's in its own frame (the swapped pair's; else the same one)."""
    import torch

    where = next(model.parameters()).device
    pixels = [transform_pixels(np.linalg.inv(p.network_from_image), pixel_grid(p.height, p.width)) for p in inputs]

    def as_map(points: torch.Tensor | None, confidence: torch.Tensor | None, view: int) -> ViewMap:
        assert points is not None and confidence is not None
        numbers = [t[0].float().cpu().numpy().astype(np.float64) for t in (points, confidence)]
        return ViewMap(numbers[0], numbers[1], pixels[view])

    with torch.inference_mode():
        features = [model.encode(torch.from_numpy(p.image)[None].to(where)) for p in inputs]
        out = model.decode(*features, descriptors=False)
        maps = [as_map(out.points1, out.confidence1, 0), as_map(out.points2, out.confidence2, 1)]
        if not swapped:
            return maps, maps[1]
        back = model.decode(*features[::-1], descriptors=False)
        return maps, as_map(back.points1, back.confidence1, 1)


def _estimated_K(photo: Photo, own: ViewMap, min_confidence: float) -> np.ndarray:
    """Intrinsics from the view's points in its own camera's frame, principal point at the photo's centre."""
    centre = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    confident = own.confident(min_confidence)
    focal_px = focal_from_point_map(own.points, own.pixels, centre, confident)
    if focal_px is None:
        raise JobFailed(
            f"no focal length fits the model's points of {photo.path.name} ({int(confident.sum())} of "
            f"{confident.size} reach the confidence {min_confidence:g}); give --intrinsics, or lower --min-confidence"
        )
    return K_from_focal(focal_px, photo.width, photo.height)


def _second_pose(
    photo: Photo, second: ViewMap, K: np.ndarray, prepared: Prepared, config: PointMapConfig
) -> tuple[AbsolutePose, int]:
    """Camera 2's pose by PnP of its pixels on its confident points in camera 1's frame, and how many were used."""
    confident = np.flatnonzero(second.confident(config.min_confidence))
    if len(confident) < MIN_POINTS:
        raise JobFailed(
            f"only {len(confident)} points of {photo.path.name} reach the confidence {config.min_confidence:g}: the "
            "photos may not show the same place; take photos that overlap more, or lower --min-confidence"
        )
    if len(confident) > MAX_PNP_POINTS:
        confident = np.sort(np.random.default_rng(config.seed).choice(confident, MAX_PNP_POINTS, replace=False))
    points, pixels = second.points.reshape(-1, 3)[confident], second.pixels.reshape(-1, 2)[confident]
    image_per_network = 1 / float(np.sqrt(abs(np.linalg.det(prepared.network_from_image[:2, :2]))))
    pose = estimate_absolute_pose(points, pixels, K, PNP_THRESHOLD_PX * image_per_network, config.seed)
    inliers = 0 if pose is None else int(pose.inliers.sum())
    if pose is None or inliers < MIN_INLIER_SHARE * len(points):
        raise JobFailed(
            f"no camera pose fits the model's points of {photo.path.name} ({inliers} of {len(points)} agree); take "
            "photos that overlap more, give --intrinsics, or use --method matches"
        )
    return pose, len(points)


# N photos to a scene by a two-view model: pairwise metric point maps, aligned globally, and dense points of them.


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
    maker = PairDecoder(model, config.size_px or model.size, work)
    with run.stage("encode"):
        every = maker.encode(paths)
    own = _different(every)
    if len(own) < 2:
        raise JobFailed(f"all {len(every)} photos are the same picture; take photos from different places")
    photos = [every[index] for index in own]
    intrinsics = intrinsics_of([photo.facts for photo in every])
    plan = plan_pairs(photos, config)
    console.note(f"{len(every)} photos, {len(plan.pairs)} pairs ({plan.strategy}), each decoded in both orders")
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
    check_distinct_centres(given)
    offset = world_offset(np.array([pose[:3, 3] for pose in given.values()]))
    given = {path: subtract_world_offset(pose, offset) for path, pose in given.items()}
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
        maps = [fuse_pointmaps(maker, photos, data, found, v, config.min_confidence) for v in range(len(photos))]
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
        notes=() if offset is None else (LARGE_COORDINATES_NOTE,),
    )
    if not any(view.dense is not None and view.dense.valid.any() for view in views):
        raise JobFailed("no point lies on a surface: the model's point maps are noise for these photos")
    return scene if config.baseline is None else _scaled(scene, config.baseline, bool(known.has_pose.any()))


def plan_pairs(photos: Sequence[EncodedPhoto], config: ManyPointMapsConfig) -> pairing.PairSelection:
    """Which photos are decoded together."""
    count, way = len(photos), config.pairs
    if way == "all" or (way == "auto" and count <= pairing.EXHAUSTIVE_UP_TO):
        return pairing.PairSelection(pairing.exhaustive_pairs(count), "all")
    if way == "sequential":
        return pairing.PairSelection(pairing.sequential_pairs(count, config.neighbours), "sequential")
    if way not in pairing.STRATEGIES:
        return pairing.PairSelection(pairing.read_pairs(way, [photo.facts.path for photo in photos]), f"from {way}")
    alike = pairing.retrieval_pairs(np.stack([photo.pooled for photo in photos]), config.neighbours)
    if way == "auto" and config.ordered:
        both = {*alike, *pairing.sequential_pairs(count, config.neighbours)}
        return pairing.PairSelection(sorted(both), "retrieval and sequential")
    return pairing.PairSelection(alike, "retrieval")


def _different(photos: Sequence[EncodedPhoto]) -> list[int]:
    """Without the photos whose file is that of an earlier one."""
    first: dict[str, int] = {}
    return [i for i, photo in enumerate(photos) if first.setdefault(photo.facts.sha256, i) == i]


def _renumbered(data: PairPoints, joined: Sequence[int]) -> PairPoints:
    place = {view: index for index, view in enumerate(joined)}
    pairs = np.array([[place[i], place[j]] for i, j in data.pairs.tolist()], np.int64)
    return PairPoints(pairs, data.points, data.confidence, data.anchors[list(joined)], data.sizes[list(joined)])


def _known(
    photos: Sequence[EncodedPhoto], intrinsics: Intrinsics, poses: Mapping[Path, np.ndarray], fixed_poses: bool
) -> KnownCameras:
    nothing = KnownCameras.nothing(len(photos))
    for index, (photo, (K, source)) in enumerate(zip(photos, intrinsics)):
        if source != "default":
            nothing.K[index] = K
        if photo.facts.path in poses:
            nothing.world_from_cam[index] = poses[photo.facts.path]
    return KnownCameras(nothing.K, nothing.world_from_cam, poses_are_priors=not fixed_poses)


def _views(
    every: Sequence[EncodedPhoto],
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


def _pairs(data: PairPoints, found: Alignment, own: Sequence[int]) -> tuple[ImagePair, ...]:
    """Both orders of a pair as one: the anchors that it was asked for, and those that agree."""
    counts: dict[tuple[int, int], list[float]] = {}
    for (i, j), sure, share in zip(data.pairs.tolist(), data.confidence, found.pair_inliers):
        total = counts.setdefault((own[min(i, j)], own[max(i, j)]), [0, 0.0])
        used = int((sure > 0).sum())
        total[0] += used
        total[1] += share * used
    return tuple(ImagePair(images, int(used), int(inliers)) for images, (used, inliers) in sorted(counts.items()))


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
    return scale_by_baseline(scene, baseline, None)
