"""Global mapping of many photos: COLMAP's global mapper places all of them at once, with cameras that a part of the
photos calibrates.

The global mapper takes focal lengths as they are given: with a guessed one it breaks photos into pieces or bends them.
So the photos that hang together best are mapped incrementally first, for their cameras alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.sfm.cameras import PhotoCameras, SharedCamera
from dune_cli.sfm.mapper import Draft, MappingConfig, map_once, map_photos
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import VerifiedPairs

CORE = 60  # photos that calibrate the cameras


def map_globally(
    correspondences: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
    config: MappingConfig,
    scratch: Path,
) -> Draft:
    """The models of the global mapper, largest first, as `map_once` gives them; the cameras of the best connected
    photos are calibrated by these before."""
    if not all(camera.fixed and camera.lens_known for camera in cameras.shared):
        cameras = _calibrated(correspondences, verified, cameras, config, scratch)
    return map_once(correspondences, verified, cameras, replace(config, mapper="global"), scratch)


def _calibrated(
    correspondences: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
    config: MappingConfig,
    scratch: Path,
) -> PhotoCameras:
    """The cameras, those of the best connected photos as known ones."""
    core = best_connected(verified, len(cameras.ids), CORE)
    matches = {pair: found for pair, found in correspondences.matches.items() if core.issuperset(pair)}
    keypoints = tuple(k if index in core else k[:0] for index, k in enumerate(correspondences.keypoints))
    part = replace(correspondences, keypoints=keypoints, matches=matches)
    pairs = replace(verified, geometry={pair: g for pair, g in verified.geometry.items() if core.issuperset(pair)})
    models = map_photos(part, pairs, cameras, replace(config, mapper="incremental"), scratch)
    if not models:
        return cameras
    shared = list(cameras.shared)
    for number, camera in models[0].cameras.items():
        if not (shared[number].fixed and shared[number].lens_known):
            shared[number] = SharedCamera(camera, fixed=True, prior=False, lens_known=True)
    return replace(cameras, shared=tuple(shared))


def best_connected(verified: VerifiedPairs, count: int, size: int) -> set[int]:
    """At most `size` of `count` photos that hang together: the one with most inliers, then again and again the one that
    has most of them with those chosen before."""
    neighbours = verified.inliers_by_photo()
    tied = np.array([sum(neighbours.get(photo, {}).values()) for photo in range(count)])
    chosen: set[int] = set()
    while len(chosen) < size and tied.max(initial=0) > 0:
        photo = int(tied.argmax())
        if not chosen:
            tied = np.zeros(count, np.int64)
        chosen.add(photo)
        for other, inliers in neighbours[photo].items():
            tied[other] += inliers
        tied[list(chosen)] = 0
    return chosen
