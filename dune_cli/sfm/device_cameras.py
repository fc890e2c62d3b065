"""Cameras of photos that say nothing of them, such as those of two devices in one folder: photos of one size whose
focal lengths agree were taken by one camera.

A camera of its own for each photo leaves its principal point and most of its lens unknown, and these errors bend a
scene. Photos of one size by many people, and at many zooms, have focal lengths that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.sfm.calibration import CHOICE_VIEWS
from dune_cli.sfm.cameras import SAME_SIZE_SHARE, PhotoCameras
from dune_cli.sfm.mapper import INITIAL_PAIRS, Draft, MappingConfig, map_photos
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.rig_estimation import MappedInRigs
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import VerifiedPairs

APART = 0.1  # of the logarithms of focal lengths, from their median
KEPT_SCORE = 0.95  # of a model, that it must keep where cameras are shared


def with_shared_cameras(
    held: MappedInRigs, correspondences: Correspondences, verified: VerifiedPairs, config: MappingConfig, scratch: Path
) -> MappedInRigs:
    """What was mapped without known poses; where photos of one size turn out to have one camera, calibrated again with
    it, unless fewer are placed then or the model explains less of them."""
    if not held.models or held.cameras.rigs.mounts:
        return held
    shared = cameras_by_size(held.cameras, held.models[0])
    if shared is None:
        return held
    models = [_renumbered(model, held.cameras, shared) for model in held.models]
    again = map_photos(correspondences, verified, shared, config, scratch, draft=Draft(models, INITIAL_PAIRS))
    before, pixel_size = held.models[0], correspondences.pixel_size
    if not again or len(again[0].world_from_cam) < len(before.world_from_cam):
        return held
    if again[0].score(pixel_size) < KEPT_SCORE * before.score(pixel_size):
        return held
    count = len(held.cameras.shared)
    note = f"photos of one size have one focal length: {len(shared.shared)} cameras instead of {count}"
    return MappedInRigs(again, shared, (*held.notes, note))


def cameras_by_size(cameras: PhotoCameras, model: SfmModel) -> PhotoCameras | None:
    """The cameras with one for the photos of each size, where the focal lengths of most of them agree in the `model`;
    None where that changes nothing."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for n, camera in enumerate(cameras.shared):
        if not (camera.fixed or camera.prior or camera.lens_known):
            sizes.setdefault((camera.width, camera.height), []).append(n)
    one_of: dict[int, int] = {}
    for group in sizes.values():
        placed = [n for n in group if n in model.cameras]
        if len(placed) < CHOICE_VIEWS:
            continue
        logs = np.log([model.cameras[n].params[0] for n in placed])
        off = np.abs(logs - np.median(logs))
        if (off <= APART).sum() < max(CHOICE_VIEWS, SAME_SIZE_SHARE * len(placed)):
            continue
        middle = placed[int(np.argmin(off))]
        others = {n for n, far in zip(placed, off > APART) if far}
        one_of |= {n: middle for n in group if n not in others}
    if not one_of:
        return None
    kept = sorted({one_of.get(n, n) for n in range(len(cameras.shared))})
    ids = tuple(kept.index(one_of.get(n, n)) for n in cameras.ids)
    return replace(cameras, shared=tuple(cameras.shared[n] for n in kept), ids=ids)


def _renumbered(model: SfmModel, before: PhotoCameras, after: PhotoCameras) -> SfmModel:
    """The model with the cameras `after`, of those that now share one that whose focal length is in the middle."""
    groups: dict[int, list[int]] = {}
    for photo in sorted(model.world_from_cam):
        groups.setdefault(after.ids[photo], []).append(before.ids[photo])
    return replace(
        model, cameras={n: model.cameras[_middle(own, model)] for n, own in groups.items()}, camera_sd={}, modes={}
    )


def _middle(cameras: Sequence[int], model: SfmModel) -> int:
    """The camera with the median focal length."""
    ordered = sorted(set(cameras), key=lambda n: model.cameras[n].params[0])
    return ordered[len(ordered) // 2]
