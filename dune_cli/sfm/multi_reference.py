"""One pose from several references at once: what they know of the scene is put together, then the query is placed.

Where the references' points are known in metres (depth maps, a two-view model) these are brought to one frame; else two
references that see parallax make a map, the others are placed in it one by one, and the query last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import poses
from dune_cli.io.cache import WorkFolder
from dune_cli.sfm.cameras import Camera
from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
from dune_cli.sfm.localization import (
    LocalizationConfig,
    LocalizationResult,
    Matches2D3D,
    Query,
    localize,
    localize_from_matches,
)
from dune_cli.sfm.photo_map import MapImage, PhotoMap
from dune_cli.sfm.relative_pose import (
    CameraImage,
    MatcherBackend,
    PairBackend,
    Relocalization,
    SolverConfig,
    TwoViewMatches,
    relocalize,
)

SEEDS = 6  # the best references, among which a pair is looked for to begin with


@dataclass(frozen=True)
class UsedReference:
    """A reference that took part: its pose in the frame of the first one, and how many points of it agree."""

    shot: CameraImage
    ref_from_this: np.ndarray
    inliers: int


@dataclass(frozen=True)
class MultiReferencePose:
    """The query's pose relative to `pose.reference`, out of all the `references`; `covariance` (6, 6) as in
    `Located`, in the reference's frame."""

    pose: Relocalization
    references: tuple[UsedReference, ...]
    located: LocalizationResult


def localize_from_references(
    backend: PairBackend,
    seen_references: Sequence[Any],
    seen_query: Any,
    commons: Sequence[TwoViewMatches | None],
    pairs: Sequence[Relocalization],
    config: SolverConfig,
) -> MultiReferencePose | None:
    """The query's pose by all references together; None where fewer than two can be brought together.

    `seen_references` and `seen_query` as `backend.look` gave them; `commons` and `pairs` what each reference alone has
    in common with the query (None: not even that) and the pose that follows; the best one gives the frame, if it takes
    part.
    """
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].success, pairs[i].confidence, pairs[i].inliers))[::-1]
    references = [seen_references[i] for i in order]
    if len(references) < 2:
        return None
    if backend.is_metric or all(shot_of(seen).depth is not None for seen in references):
        return _on_metric_points(backend, references, [commons[i] for i in order], config)
    if isinstance(backend, MatcherBackend):
        return _on_triangulated_points(backend, references, seen_query, config)
    return None


def shot_of(seen: Any) -> CameraImage:
    """The photo that a backend looked at."""
    return seen[0]


def _on_metric_points(
    backend: PairBackend, references: Sequence[Any], commons: Sequence[TwoViewMatches | None], config: SolverConfig
) -> MultiReferencePose | None:
    """The references are placed by PnP on the first one's points, and the query on the points of all."""
    by_pnp = SolverConfig("pnp", None, config.min_confidence, config.seed)
    if commons[0] is None:
        return None
    placed = [(np.eye(4), commons[0])]
    for reference, common in zip(references[1:], commons[1:]):
        if common is None:
            continue
        try:
            other = relocalize(backend.match(references[0], reference), by_pnp)
        except JobFailed:
            continue  # it has nothing to say about the scene; the pair's own result tells why
        if other.ref_from_query is not None:
            placed.append((other.ref_from_query, common))
    if len(placed) < 2:
        return None
    first = placed[0][1]
    seen = _seen_by(placed)
    photo_map = _map_of([(common.reference, pose) for pose, common in placed], "metric", None)
    found = localize_from_matches(
        seen, _query(first.query), photo_map, [(i, None) for i in range(len(placed))], _config(config)
    )
    where = "the depth maps of the references" if first.reference.depth is not None else "the model's metric points"
    return _joint(found, first.query, [(common.reference, pose) for pose, common in placed], where)


def _seen_by(placed: Sequence[tuple[np.ndarray, TwoViewMatches]]) -> Matches2D3D:
    pixels, points, images = [], [], []
    for index, (world_from_ref, common) in enumerate(placed):
        assert common.points is not None, "metric sights know points"
        known = np.isfinite(common.points).all(-1)
        pixels.append(common.matches.points2[known])
        points.append(poses.transform_points(world_from_ref, common.points[known]))
        images.append(np.full(int(known.sum()), index))
    unit_px = placed[0][1].matches.pixel_size2
    return Matches2D3D.of(np.concatenate(pixels), np.concatenate(points), np.concatenate(images), unit_px)


def _on_triangulated_points(
    backend: MatcherBackend, references: Sequence[Any], query: Any, config: SolverConfig
) -> MultiReferencePose | None:
    essential = SolverConfig("essential", None, config.min_confidence, config.seed)
    best: tuple[float, int, int, np.ndarray] | None = None
    for i, j in combinations(range(min(len(references), SEEDS)), 2):
        pair = relocalize(backend.match(references[i], references[j]), essential)
        if pair.ref_from_query is not None and (best is None or pair.confidence > best[0]):
            best = pair.confidence, i, j, pair.ref_from_query
    if best is None:
        return None
    _, i, j, i_from_j = best  # its translation has length 1
    placed = {i: np.eye(4), j: i_from_j}
    names = [shot_of(references[k]).name for k in (i, j)]
    note = f"lengths are in units of the distance between {names[0]} and {names[1]}; give --ref-depth of each reference"
    for k in [k for k in range(len(references)) if k not in placed]:
        found = _in_map_of(backend, references, placed, references[k], config, note)
        if found.world_from_query is not None:
            placed[k] = found.world_from_query
    # the frame is that of the reference which shows most of the query
    first, *others = sorted(placed)
    frame = poses.inverse(placed[first])
    placed = {k: frame @ placed[k] for k in (first, *others)}
    found = _in_map_of(backend, references, placed, query, config, note)
    return _joint(found, shot_of(query), [(shot_of(references[k]), pose) for k, pose in placed.items()], note)


def _in_map_of(
    backend: MatcherBackend,
    references: Sequence[Any],
    placed: dict[int, np.ndarray],
    query: Any,
    config: SolverConfig,
    note: str,
) -> LocalizationResult:
    photo_map = _map_of([(shot_of(references[k]), pose) for k, pose in placed.items()], "arbitrary", note)
    points = Landmarks(photo_map, backend.matcher, LandmarkConfig(seed=config.seed), WorkFolder(None))
    for index, k in enumerate(placed):
        shot, features = references[k]
        points.remember(index, shot.photo.rgb if features is None else features, shot.photo.rgb)
    candidates = [(index, None) for index in range(len(placed))]
    return localize(_query(shot_of(query)), points, candidates, _config(config))


def _map_of(placed: Sequence[tuple[CameraImage, np.ndarray]], scale: str, note: str | None) -> PhotoMap:
    images = [
        MapImage(shot.name, shot.photo.path, Camera.pinhole(shot.K, *shot.size), world_from_ref)
        for shot, world_from_ref in placed
    ]
    return PhotoMap(Path("the references"), tuple(images), scale, note)


def _query(shot: CameraImage) -> Query:
    # a guessed focal length stays the guess that the references share
    source = "given" if shot.focal_source == "default" else shot.focal_source
    return Query(shot.photo, Camera.pinhole(shot.K, *shot.size), source)


def _config(config: SolverConfig) -> LocalizationConfig:
    return LocalizationConfig(config.min_confidence, seed=config.seed)


def _joint(
    found: LocalizationResult, query: CameraImage, placed: Sequence[tuple[CameraImage, np.ndarray]], scale_from: str
) -> MultiReferencePose | None:
    if found.world_from_query is None:
        return None
    used = [UsedReference(shot, pose, seen.inliers) for (shot, pose), seen in zip(placed, found.retrieved, strict=True)]
    pose = Relocalization(
        query=query,
        reference=placed[0][0],
        query_from_ref=poses.inverse(found.world_from_query),
        scale=found.map.scale,
        scale_from=scale_from,
        matches=found.matches,
        inliers=found.inliers,
        confidence=found.confidence,
        solver="pnp",
    )
    return MultiReferencePose(pose, tuple(used), found)
