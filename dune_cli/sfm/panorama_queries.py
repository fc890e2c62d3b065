"""Localization of panoramas: their perspective views find matches and a first pose, which is refined on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.absolute_pose import Matches2D3D
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import backproject
from dune_cli.geometry.central_pose import refine_central_pose
from dune_cli.io.photos import Photo
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.sfm.landmarks import Landmarks
from dune_cli.sfm.localization import (
    LocalizationConfig,
    LocalizationResult,
    Query,
    RetrievedImage,
    localize_from_matches,
    match_landmarks,
)
from dune_cli.sfm.panoramas import DIRECTIONS, perspective_view
from dune_cli.sfm.retrieval import Candidates


@dataclass(frozen=True)
class _LocatedView:
    """A view of the query, its matches and the pose that these give."""

    view: StraightPhoto
    matches: Matches2D3D
    result: LocalizationResult


def localize_panorama(
    photo: Photo,
    sphere: Camera,
    landmarks: Landmarks,
    candidates: Candidates,
    config: LocalizationConfig,
    retrieve: Callable[[np.ndarray], Candidates] | None,
) -> LocalizationResult:
    """The pose of a panorama in the map. Its perspective views are localized one by one; the best pose, with that
    view's confidence, is refined on the matches of all views. `retrieve` gives the candidates of a view; None: they are
    those given for the whole."""
    located = []
    for direction in DIRECTIONS:
        view = perspective_view(sphere, direction)
        rgb = view.image(photo.rgb)
        name = photo.path.with_name(f"{direction} of {photo.path.name}")
        query = Query(Photo(name, rgb, photo.sha256), Camera.pinhole(view.K, view.width, view.height), "given")
        own = candidates if retrieve is None else retrieve(rgb)
        matches, static = match_landmarks(query, landmarks, [index for index, _ in own])
        result = localize_from_matches(matches, query, landmarks.map, own, config, static_matches=static)
        located.append(_LocatedView(view, matches, result))
    best = max(located, key=lambda one: (one.result.success, one.result.inliers))
    whole = replace(
        best.result,
        name=str(photo.path),
        K=None,
        camera=sphere,
        size=(photo.width, photo.height),
        matches=sum(one.result.matches for one in located),
        static_matches=sum(one.result.static_matches for one in located),
        retrieved=_retrieved([one.result for one in located]),
    )
    if not best.result.success:
        return replace(whole, message=f"{photo.path.name}: of its six views the best one: {best.result.message}")
    return _refined(whole, best, located, landmarks, config)


def _refined(
    whole: LocalizationResult,
    best: _LocatedView,
    located: Sequence[_LocatedView],
    landmarks: Landmarks,
    config: LocalizationConfig,
) -> LocalizationResult:
    """The result with the pose that the matches of all views agree on."""
    offset = landmarks.map.world_offset
    assert best.result.world_from_query is not None and best.view.rotation is not None
    start = poses.inverse(poses.subtract_world_offset(best.result.world_from_query, offset))
    start = poses.from_rotation_translation(best.view.rotation.T, np.zeros(3)) @ start
    owned = [_inside_cube(one.matches.pixels, one.view.K) for one in located]
    joined = [
        np.concatenate([getattr(one.matches, name)[rows] for one, rows in zip(located, owned)])
        for name in ("points_world", "pixels")
    ]
    views = np.repeat(np.arange(len(located)), [len(rows) for rows in owned])
    shifts = None
    if all(one.matches.shifts is not None for one in located):
        shifts = np.concatenate([one.matches.shifts[rows] for one, rows in zip(located, owned)])  # type: ignore[index]
    threshold_px = config.threshold * best.matches.pixel_size
    rotations = [one.view.rotation for one in located]
    refined = refine_central_pose(*joined, views, rotations, best.view.K, start, threshold_px, shifts)
    if refined is None:
        return replace(whole, world_from_query=poses.add_world_offset(poses.inverse(start), offset))
    near = refined.errors_px < threshold_px
    return replace(
        whole,
        world_from_query=poses.add_world_offset(poses.inverse(refined.cam_from_world), offset),
        covariance=refined.covariance,
        from_calibration=refined.from_calibration,
        inliers=int(np.count_nonzero(near)),
        reprojection_error_px=float(np.sqrt(np.mean(refined.errors_px[near] ** 2))),
    )


def _inside_cube(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """The rows of the matches within 45 degrees of a view's axes, where views do not overlap: a keypoint that two views
    show counts once. One match a pixel."""
    rays = backproject(pixels, np.ones(len(pixels)), K)
    inside = np.flatnonzero(np.abs(rays[:, :2]).max(-1, initial=0.0) <= 1)
    return inside[np.sort(np.unique(np.round(2 * pixels[inside]), axis=0, return_index=True)[1])]


def _retrieved(results: Sequence[LocalizationResult]) -> tuple[RetrievedImage, ...]:
    """The map images that were matched with any view, each once."""
    found: dict[str, RetrievedImage] = {}
    for one in (image for result in results for image in result.retrieved):
        before = found.get(one.name, RetrievedImage(one.name, one.similarity, 0, 0))
        known = [value for value in (before.similarity, one.similarity) if value is not None]
        matches, inliers = before.matches + one.matches, before.inliers + one.inliers
        found[one.name] = RetrievedImage(one.name, max(known) if known else None, matches, inliers)
    return tuple(found.values())
