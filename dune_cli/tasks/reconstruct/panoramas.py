"""Scenes of panoramas: photos are worked on as perspective views (`sfm/panoramas.py`), and the scene of these becomes
one with a pose for each panorama."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.rigs import NO_RIGS
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoInfo
from dune_cli.sfm.masks import PhotoMasks
from dune_cli.sfm.pairs import STRATEGIES
from dune_cli.sfm.panoramas import PerspectivePhotos, ViewMasks, cut
from dune_cli.sfm.scale import scale_by_baseline
from dune_cli.sfm.scene import NO_K, ImagePair, PerspectiveScene, Scene, SparsePoints, View
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig


def reconstruct_panoramas(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    config: MatchesConfig,
    cache: WorkFolder,
    known_poses: Mapping[Path, np.ndarray] | None,
    reconstruct: Callable[[Sequence[Path], CamerasOf, MatchesConfig, Mapping[Path, np.ndarray] | None], Scene],
) -> Scene:
    """The scene of photos of which `config.spheres` are panoramas. `reconstruct` makes that of perspective photos, with
    their cameras, configuration and known poses.

    UserError for pairs in a file, for panoramas in the rigs of photos, and for panoramas that EXIF turns.
    """
    if config.pairs not in STRATEGIES:
        raise UserError(
            f"--pairs {config.pairs} names pairs of photos, and panoramas are matched by their views; leave --pairs "
            "out, or give all, retrieval or sequential"
        )
    if config.rigs.mounts:
        raise UserError("--rig goes with photos, and panoramas are among these; leave one of the two out")
    photos = cut(paths, config.spheres, cache)

    def cameras_of_parts(infos: Sequence[PhotoInfo]) -> Sequence[PhotoCamera]:
        return photos.cameras(cameras_of(photos.infos(infos)))

    masks = config.masks
    if masks is not None:
        masks = PhotoMasks(tuple(ViewMasks.of(part, photos) for part in masks.parts))
    names = tuple(photos.names)
    settings = replace(
        config, spheres={}, rigs=photos.rigs, names=names, masks=masks, baseline=None, positions=None, check=None
    )
    known = None if known_poses is None else photos.poses(known_poses)
    scene = with_panoramas(reconstruct(photos.paths, cameras_of_parts, settings, known), photos)
    if scene.perspective is not None:
        scene = replace(scene, perspective=replace(scene.perspective, masks=masks))
    if config.baseline is None:
        return scene
    if known_poses:
        raise UserError("--poses and --baseline both set the scale; give one of them")
    return scale_by_baseline(scene, config.baseline, 1.0)


def with_panoramas(scene: Scene, photos: PerspectivePhotos) -> Scene:
    """The `scene` of the parts of photos as one of the photos. The scene of the parts is its `perspective`; dense maps
    are there alone."""
    names = relative_names(list(photos.sources))
    parts = [photos.of(source) for source in range(len(names))]
    views = [
        _panorama_view(scene, own, names[source], photos.spheres[source])
        if source in photos.spheres
        else replace(scene.views[own[0]], image=names[source])
        for source, own in enumerate(parts)
    ]
    plain = [replace(view, dense=None) for view in views]
    groups = [sorted({photos.parts[index].source for index in group}) for group in scene.components]
    components = [tuple(group) for group in groups if len(group) > 1]
    perspective = replace(scene, fused=None, surface=None, rigs=photos.rigs)
    return replace(
        scene,
        views=tuple(plain),
        pairs=tuple(_pairs(scene, photos)),
        sparse=None if scene.sparse is None else _sparse(scene.sparse, photos, parts),
        components=tuple(components) if len(components) > 1 else (),
        perspective=PerspectiveScene(perspective, tuple(photos.paths)),
        rigs=NO_RIGS,
        notes=(*scene.notes, _note(len(photos.spheres))),
    )


def _note(count: int) -> str:
    many = "1 panorama was" if count == 1 else f"{count} panoramas were"
    return f"{many} worked on as six views to the sides of a cube, with one pose each"


def _panorama_view(scene: Scene, own: Sequence[int], name: str, sphere: Camera) -> View:
    """The view of a panorama, whose parts are `own`; the first of them has its axes."""
    first = scene.views[own[0]]
    reason = None
    if not first.registered:
        most = max(own, key=lambda index: max((p.inliers for p in scene.pairs if index in p.images), default=0))
        reason = scene.views[most].reason
    return View(
        image=name,
        width=sphere.width,
        height=sphere.height,
        K=NO_K,
        focal_source="given",
        world_from_cam=first.world_from_cam,
        registered=first.registered,
        lens=sphere,
        reason=reason,
    )


def _pairs(scene: Scene, photos: PerspectivePhotos) -> list[ImagePair]:
    """The pairs of photos: the matches of all their parts, and the confidence of their best pair."""
    found: dict[tuple[int, int], ImagePair] = {}
    for pair in scene.pairs:
        one, two = sorted(photos.parts[index].source for index in pair.images)
        before = found.get((one, two), ImagePair((one, two), 0, 0, 0.0))
        confidence = max(before.pose_confidence or 0.0, pair.pose_confidence or 0.0)
        found[one, two] = ImagePair(
            (one, two), before.matches + pair.matches, before.inliers + pair.inliers, confidence
        )
    return [found[pair] for pair in sorted(found)]


def _sparse(sparse: SparsePoints, photos: PerspectivePhotos, parts: Sequence[Sequence[int]]) -> SparsePoints:
    """The points with their pixels in the photos; a photo sees a point once, where several of its parts do."""
    observations = []
    for own in parts:
        indices, pixels = [np.zeros(0, np.int64)], [np.zeros((0, 2))]
        for part in own:
            view, (index, seen) = photos.parts[part].view, sparse.observations[part]
            indices.append(index)
            pixels.append(seen if view is None else view.pixels_in_photo(seen))
        every, first = np.unique(np.concatenate(indices), return_index=True)
        observations.append((every, np.concatenate(pixels)[first]))
    return replace(sparse, observations=tuple(observations))
