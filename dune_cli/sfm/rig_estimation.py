"""Rigs whose cameras' poses are not given: from a reconstruction of the photos without them, as COLMAP's
`rig_configurator` does it, then adjusted with the photos that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.geometry.poses import inverse, rotation_angle
from dune_cli.geometry.rigs import Rigs
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.mapper import Draft, MappingConfig, map_photos
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import SfmModel
from dune_cli.sfm.verification import VerifiedPairs


@dataclass(frozen=True)
class MappedInRigs:
    """The models of `map_photos`; the `cameras` with the rigs as the largest model has them; `notes` on these."""

    models: list[SfmModel]
    cameras: PhotoCameras
    notes: tuple[str, ...] = ()


def map_in_rigs(
    correspondences: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
    config: MappingConfig,
    scratch: Path,
    known_poses: Mapping[int, np.ndarray],
    draft: Draft | None,
) -> MappedInRigs:
    """`map_photos`; where poses of cameras in rigs are not given, twice: the photos without these rigs, then with the
    rigs that the poses tell (`Rigs.fitted`), which the bundle adjustment refines. Cameras that have no moment in common
    with their rig's reference stay alone."""
    rigs = cameras.rigs
    if not rigs.estimated:
        return MappedInRigs(
            map_photos(correspondences, verified, cameras, config, scratch, known_poses, draft), cameras
        )
    alone = replace(cameras, rigs=rigs.given())
    models = map_photos(correspondences, verified, alone, config, scratch, known_poses)
    found = rigs.fitted(models[0].world_from_cam if models else {})
    notes = [
        f"{_prefix(rigs, lost)}: no moment has it and the reference of its rig placed, so its photos stand alone"
        for lost in sorted(rigs.estimated - found.estimated)
    ]
    if not found.estimated:
        return MappedInRigs(models, alone, tuple(notes))
    console.note(f"{len(found.estimated)} poses of cameras in their rigs were estimated; the photos are mapped again")
    held = map_photos(correspondences, verified, replace(cameras, rigs=found), config, scratch, known_poses)
    if not held or len(held[0].world_from_cam) < len(models[0].world_from_cam):
        notes.append("with the estimated rigs fewer photos were placed, so they are not held by them")
        return MappedInRigs(models, alone, tuple(notes))
    in_end = found.fitted(held[0].world_from_cam)
    notes += [_note(in_end, sensor, models[0]) for sensor in sorted(in_end.estimated)]
    return MappedInRigs(held, replace(cameras, rigs=in_end), tuple(notes))


def _note(rigs: Rigs, sensor: tuple[int, int], alone: SfmModel) -> str:
    """What was estimated of a sensor, and how far single moments are from it in the model without the rig."""
    pose, placed = rigs.sensors(sensor[0])[sensor[1]], alone.world_from_cam
    off = []
    for photos in rigs.frames.values():
        for photo in photos[1:]:
            mount = rigs.mounts[photo]
            if (mount.rig, mount.sensor) == sensor and {photos[0], photo} <= placed.keys():
                single = inverse(placed[photo]) @ placed[photos[0]]
                off.append(np.degrees(rotation_angle(pose[:3, :3].T @ single[:3, :3])))
    turn = np.degrees(rotation_angle(pose[:3, :3]))
    return (
        f"{_prefix(rigs, sensor)}: its pose in the rig was estimated from {len(off)} moments, {turn:.2f} deg from the "
        f"reference; single moments were {np.median(off):.2f} deg off (median)"
    )


def _prefix(rigs: Rigs, sensor: tuple[int, int]) -> str:
    return rigs.prefixes.get(sensor) or f"sensor {sensor[1]} of a rig"
