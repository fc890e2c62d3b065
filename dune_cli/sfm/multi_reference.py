"""One pose from several references: a small map is made of the references, and the query is localized in it.

References with points in metres (depth maps, a two-view model) are brought to one frame by PnP. Otherwise two
references with parallax make the map, the others are localized in it one by one, and the query last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import poses
from dune_cli.geometry.absolute_pose import Matches2D3D
from dune_cli.io.cache import WorkFolder
from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
from dune_cli.sfm.localization import (
    LocalizationConfig,
    LocalizationResult,
    Query,
    localize,
    localize_from_matches,
)
from dune_cli.sfm.photo_map import MapImage, PhotoMap
from dune_cli.sfm.relative_pose import (
    CameraFeatures,
    CameraImage,
    MatcherBackend,
    PairBackend,
    Relocalization,
    SolverConfig,
    TwoViewMatches,
    relocalize,
)

INITIAL_REFERENCES = 6  # the best ones, among which the initial pair is chosen


@dataclass(frozen=True)
class UsedReference:
    """A reference that took part: its pose in the frame of the first one, and how many of its points are inliers."""

    image: CameraImage
    ref_from_this: np.ndarray
    inliers: int


@dataclass(frozen=True)
class MultiReferencePose:
    """The query's pose relative to `pose.reference`, from all the `references`. `localization`: its localization in
    their map, with the covariance in the reference's frame."""

    pose: Relocalization
    references: tuple[UsedReference, ...]
    localization: LocalizationResult


def localize_from_references(
    backend: PairBackend,
    references: Sequence[CameraFeatures],
    query: CameraFeatures,
    matches: Sequence[TwoViewMatches | None],
    pairs: Sequence[Relocalization],
    config: SolverConfig,
) -> MultiReferencePose | None:
    """The query's pose by all references together; None where fewer than two can be brought to one frame.

    `matches`: those of each reference with the query (None: they could not be matched). `pairs`: the pose by each
    reference alone; the best one gives the frame, if it takes part.
    """
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].success, pairs[i].confidence, pairs[i].inliers))[::-1]
    references, matches = [references[i] for i in order], [matches[i] for i in order]
    if len(references) < 2:
        return None
    if backend.is_metric or all(reference.image.depth is not None for reference in references):
        return _on_metric_points(backend, references, matches, config)
    if isinstance(backend, MatcherBackend):
        return _on_triangulated_points(backend, references, query, config)
    return None


def _on_metric_points(
    backend: PairBackend,
    references: Sequence[CameraFeatures],
    matches: Sequence[TwoViewMatches | None],
    config: SolverConfig,
) -> MultiReferencePose | None:
    """The references' poses by PnP on the first one's points, and the query's by PnP on the points of all."""
    by_pnp = SolverConfig("pnp", None, config.min_confidence, config.seed)
    first = matches[0]
    if first is None:
        return None
    registered = [(np.eye(4), first)]
    for reference, pair in zip(references[1:], matches[1:]):
        if pair is None:
            continue
        try:
            other = relocalize(backend.match(references[0], reference), by_pnp)
        except JobFailed:
            continue  # the result of its own pair says why
        if other.ref_from_query is not None:
            registered.append((other.ref_from_query, pair))
    if len(registered) < 2:
        return None
    images = [(pair.reference, pose) for pose, pair in registered]
    localization = localize_from_matches(
        _matches_with_points(registered),
        _query(first.query),
        _map_of(images, "metric", None),
        [(index, None) for index in range(len(registered))],
        _localization_config(config),
    )
    source = "the depth maps of the references" if first.reference.depth is not None else "the model's metric points"
    return _result(localization, first.query, images, source)


def _matches_with_points(registered: Sequence[tuple[np.ndarray, TwoViewMatches]]) -> Matches2D3D:
    """The query's matches with the points of all references, in the first one's frame."""
    pixels, points, images = [], [], []
    for index, (first_from_ref, pair) in enumerate(registered):
        assert pair.points is not None, "metric backends know points"
        known = np.isfinite(pair.points).all(-1)
        pixels.append(pair.matches.points2[known])
        points.append(poses.transform_points(first_from_ref, pair.points[known]))
        images.append(np.full(int(known.sum()), index))
    pixel_size = registered[0][1].matches.pixel_size2
    return Matches2D3D.of(np.concatenate(pixels), np.concatenate(points), np.concatenate(images), pixel_size)


def _on_triangulated_points(
    backend: MatcherBackend, references: Sequence[CameraFeatures], query: CameraFeatures, config: SolverConfig
) -> MultiReferencePose | None:
    """The pose in the map of the best initial pair and the references that can be localized in it."""
    essential = SolverConfig("essential", None, config.min_confidence, config.seed)
    best: tuple[float, int, int, np.ndarray] | None = None
    for i, j in combinations(range(min(len(references), INITIAL_REFERENCES)), 2):
        pair = relocalize(backend.match(references[i], references[j]), essential)
        if pair.ref_from_query is not None and (best is None or pair.confidence > best[0]):
            best = pair.confidence, i, j, pair.ref_from_query
    if best is None:
        return None
    _, i, j, i_from_j = best  # its translation has length 1
    registered = {i: np.eye(4), j: i_from_j}
    names = [references[k].image.name for k in (i, j)]
    note = f"lengths are in units of the distance between {names[0]} and {names[1]}; give --ref-depth of each reference"
    for k in [k for k in range(len(references)) if k not in registered]:
        localization = _localize_in_map_of(backend, references, registered, references[k], config, note)
        if localization.world_from_query is not None:
            registered[k] = localization.world_from_query
    # the frame is that of the best reference
    first, *others = sorted(registered)
    frame = poses.inverse(registered[first])
    registered = {k: frame @ registered[k] for k in (first, *others)}
    localization = _localize_in_map_of(backend, references, registered, query, config, note)
    images = [(references[k].image, pose) for k, pose in registered.items()]
    return _result(localization, query.image, images, note)


def _localize_in_map_of(
    backend: MatcherBackend,
    references: Sequence[CameraFeatures],
    registered: Mapping[int, np.ndarray],
    query: CameraFeatures,
    config: SolverConfig,
    note: str,
) -> LocalizationResult:
    photo_map = _map_of([(references[k].image, pose) for k, pose in registered.items()], "arbitrary", note)
    landmarks = Landmarks(photo_map, backend.matcher, LandmarkConfig(seed=config.seed), WorkFolder(None))
    for index, k in enumerate(registered):
        landmarks.add_features(index, references[k].features, references[k].image.photo)
    candidates = [(index, None) for index in range(len(registered))]
    return localize(_query(query.image), landmarks, candidates, _localization_config(config))


def _map_of(images: Sequence[tuple[CameraImage, np.ndarray]], scale: str, note: str | None) -> PhotoMap:
    """The map of images with their `world_from_cam`."""
    map_images = [
        MapImage(image.name, image.photo.path, image.camera, world_from_ref) for image, world_from_ref in images
    ]
    return PhotoMap(Path("the references"), tuple(map_images), scale, note)


def _query(image: CameraImage) -> Query:
    # a guessed focal length is the same guess as the references have, and is not estimated
    source = "given" if image.focal_source == "default" else image.focal_source
    return Query(image.photo, image.camera, source)


def _localization_config(config: SolverConfig) -> LocalizationConfig:
    return LocalizationConfig(config.min_confidence, seed=config.seed)


def _result(
    localization: LocalizationResult,
    query: CameraImage,
    images: Sequence[tuple[CameraImage, np.ndarray]],
    scale_from: str,
) -> MultiReferencePose | None:
    if localization.world_from_query is None:
        return None
    used = [
        UsedReference(image, pose, retrieved.inliers)
        for (image, pose), retrieved in zip(images, localization.retrieved, strict=True)
    ]
    pose = Relocalization(
        query=query,
        reference=images[0][0],
        query_from_ref=poses.inverse(localization.world_from_query),
        scale=localization.map.scale,
        scale_from=scale_from,
        matches=localization.matches,
        inliers=localization.inliers,
        confidence=localization.confidence,
        solver="pnp",
    )
    return MultiReferencePose(pose, tuple(used), localization)
