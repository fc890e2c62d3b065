"""Photos to a scene by a multi-view model: depth, confidence and cameras of all photos in one pass.

docs/models/depth-anything-3.md. Known poses need intrinsics too, of all photos; without poses the model's own count,
but for photos with a lens: the model sees these undistorted, and their cameras are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import backproject, pixel_grid, project, transform_pixels
from dune_cli.geometry.depth_maps import depth_edges
from dune_cli.geometry.pose_conditioning import normalised_poses, similarity_to_predicted
from dune_cli.geometry.poses import (
    inverse,
    nearest_rotation,
    subtract_world_offset,
    transform_points,
    vector_angle,
    world_offset,
)
from dune_cli.geometry.sim3 import move_poses, scale_of
from dune_cli.io.bounded_resize import bounded_resize, cropped_to_smallest
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.io.preprocess import Prepared
from dune_cli.io.undistortion import prepared_photo, shown_in_photo
from dune_cli.models.da3_cameras import encode_cameras
from dune_cli.models.depth_anything3 import PROCESS_SIZE_PX, SKY, MultiViewOutput
from dune_cli.provenance import Run
from dune_cli.sfm.multiview import K_from_centres, K_to_centres, MultiViewConfig, MultiViewModel, aligned_to_given
from dune_cli.sfm.scale import MIN_BASELINE_SHARE, check_distinct_centres, scale_by_baseline
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, ImagePair, PointMap, Scene, View
from dune_cli.tasks.reconstruct.config import CamerasOf, MultiviewConfig, lenses_of

SCALE_UNKNOWN = {
    True: "the model does not tell lengths: the distance between the two cameras is 1; give --baseline METRES",
    False: "the model does not tell lengths: the median step between cameras is 1; give --baseline METRES",
}
SCALE_OF_STILL_CAMERAS = "the model does not tell lengths, and all cameras stand in one place: the unit is its own"
SCALE_OF_POSES = "lengths are those of --poses"
LEAST_CONFIDENCE, KEPT_AT_LEAST, LEFT_OUT = 1.05, 0.1, 0.4  # as the published export chooses its threshold
MANY_PHOTOS, FOLLOWING = 20, 3  # of more photos, consistency is measured with so many of those that follow
ANCHOR_STEP_PX = 14
TOLERANCE = 0.1  # of a depth: points within it agree


def reconstruct(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    model: MultiViewModel,
    config: MultiviewConfig,
    run: Run,
    known_poses: Mapping[Path, np.ndarray] | None = None,
) -> Scene:
    """The scene of two or more photos, with dense points.

    `known_poses`: photo -> `world_from_cam` (4, 4) of all photos, whose focal lengths `cameras_of` must know; they
    set the world, less the scene's `world_offset` where coordinates are large. Raises JobFailed where no point is
    confident; UserError for poses that do not do.
    """
    with run.stage("read"):
        lenses = lenses_of(paths, cameras_of)
        infos, prepared = _read(paths, lenses, config.size_px or PROCESS_SIZE_PX, model.patch)
        indices = _distinct(infos)
        if len(indices) < 2:
            raise JobFailed(f"all {len(infos)} photos are the same picture; take photos from different places")
        resolved = cameras_of(infos)
    if config.pairs != "auto":
        console.note(f"--pairs {config.pairs} is not used: the model sees all photos at once")
    views = cropped_to_smallest([prepared[index] for index in indices])
    cameras = [resolved[index] for index in indices]
    known, offset = _known_poses([infos[index] for index in indices], cameras, known_poses or {})
    with run.stage("network"), torch.inference_mode():
        out = _predict(model, views, cameras, known, config)
    with run.stage("dense"):
        out = _with_lenses(out, views, cameras)
        shown = np.stack([_shown(view, one) for view, one in zip(views, cameras)])
        maps = _maps(out, views, shown, config.min_confidence, known is not None)
        if config.masks is not None:
            masked = zip(maps.points, (infos[index].path for index in indices), cameras)
            points = [config.masks.on_map(one, path, camera.camera) for one, path, camera in masked]
            maps = replace(maps, points=points)
    names = relative_names([info.path for info in infos])
    placed = dict(zip(indices, range(len(indices))))
    Ks = K_to_centres(out.K.double().cpu().numpy())
    scene_views = []
    for index, (name, info, camera) in enumerate(zip(names, infos, resolved)):
        described = (name, info.width, info.height, camera.K, camera.source, np.full((4, 4), np.nan))
        view = View(*described, lens=lenses[index], orientation=info.orientation)
        if index not in placed:
            first = next(one for one in indices if infos[one].sha256 == info.sha256)
            scene_views.append(replace(view, registered=False, reason=f"it is the same picture as {names[first]}"))
            continue
        at, kept = placed[index], lenses[index] is not None
        K = camera.K if kept else np.linalg.inv(views[at].network_from_image) @ Ks[at]
        source = camera.source if kept or (known is not None and config.fixed_poses) else "estimated"
        scene_views.append(
            replace(view, K=K, focal_source=source, world_from_cam=maps.poses[at], dense=maps.points[at])
        )
    pairs, error_px, parallax_deg = _consistency(maps, Ks, views, indices)
    has_poses, metric = known is not None, out.metric_scale is not None and known is None
    scene = Scene(
        method="pointmap",
        views=tuple(scene_views),
        pairs=pairs,
        sparse=None,
        scale="metric" if metric else "arbitrary",
        scale_note=SCALE_OF_POSES if has_poses else None if metric else SCALE_UNKNOWN[len(indices) == 2],
        reprojection_error_px=error_px,
        parallax_deg=parallax_deg,
        sources=tuple(model.sources),
        notes=tuple(filter(None, [maps.note, None if offset is None else LARGE_COORDINATES_NOTE])),
        world="that of --poses" if has_poses else None,
        world_offset=offset,
    )
    scene = scene.with_masks(config.masks and config.masks.of_point_maps)
    if not has_poses:
        scene = _scaled(scene, config.baseline, metric)
    elif config.baseline is not None:
        raise UserError("--poses and --baseline both set the scale; give one of them")
    if not config.fuse or config.is_stereo_pair(paths, known_poses):
        return scene
    from dune_cli.mvs.densify import fuse_scene

    return fuse_scene(scene, config.mesh, run)


def _read(
    paths: Sequence[Path], lenses: Sequence[Camera | None], size_px: int, patch: int
) -> tuple[list[PhotoInfo], list[Prepared]]:
    infos, prepared = [], []
    prepare = partial(bounded_resize, size_px=size_px, patch=patch)
    for path, lens in zip(console.progress(paths, "reading photos", len(paths), "photo"), lenses):
        photo = read_photo(path)
        infos.append(photo.info)
        prepared.append(prepare(photo.rgb) if lens is None else prepared_photo(photo.rgb, lens, prepare))
    return infos, prepared


def _distinct(infos: Sequence[PhotoInfo]) -> list[int]:
    """Indices without the photos whose file equals an earlier one."""
    first: dict[str, int] = {}
    return [index for index, info in enumerate(infos) if first.setdefault(info.sha256, index) == index]


def _known_poses(
    infos: Sequence[PhotoInfo], cameras: Sequence[PhotoCamera], poses: Mapping[Path, np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(V, 4, 4) world_from_cam less the offset, and the offset. UserError for poses that the model cannot take."""
    if not poses:
        if any(one.source == "given" and one.camera.is_pinhole for one in cameras):
            console.note("this model uses --intrinsics and --fov-deg only beside --poses: it estimates its own cameras")
        if not all(one.camera.is_pinhole for one in cameras):
            console.note("the lenses that were given are kept; the model estimates depth and poses without them")
        return None, None
    without = [info.path.name for info in infos if info.path not in poses]
    if without:
        raise UserError(
            f"--poses lacks {without[0]}{f' and {len(without) - 1} more' if len(without) > 1 else ''}, and this model "
            "takes poses of all photos or of none; leave these photos or --poses out"
        )
    unknown = [info.path.name for info, one in zip(infos, cameras) if one.source == "default"]
    if unknown:
        raise UserError(
            f"the focal length of {unknown[0]} is not known, and this model takes --poses only with it; give "
            "--intrinsics or --fov-deg"
        )
    check_distinct_centres(poses)
    known = np.stack([poses[info.path] for info in infos])
    offset = world_offset(known[:, :3, 3])
    return subtract_world_offset(known, offset), offset


def _predict(
    model: MultiViewModel,
    views: Sequence[Prepared],
    cameras: Sequence[PhotoCamera],
    known: np.ndarray | None,
    config: MultiviewConfig,
) -> MultiViewOutput:
    """The network's output, in the world and unit of the known poses where there are any."""
    images = torch.from_numpy(np.stack([view.image for view in views]))
    settings = MultiViewConfig(seed=config.seed)
    if known is None:
        return model.predict(images, None, settings)
    K = np.stack([K_from_centres(view.network_from_image @ one.K) for view, one in zip(views, cameras)])
    cam_from_world = inverse(known)
    size = (images.shape[-2], images.shape[-1])
    encodings = encode_cameras(torch.from_numpy(normalised_poses(cam_from_world)), torch.from_numpy(K), size).float()
    out = model.predict(images, encodings, settings)
    try:
        if config.fixed_poses:
            return aligned_to_given(out, cam_from_world, K, keep_given=True)
        predicted = inverse(out.cam_from_world.double().cpu().numpy())
        predicted_from_given = similarity_to_predicted(known, predicted)
    except ValueError as error:
        raise UserError(f"--poses does not do for this model: {error}") from error
    moved = inverse(move_poses(np.linalg.inv(predicted_from_given), predicted))
    scale = float(scale_of(predicted_from_given))
    return replace(out, depth=out.depth / scale, cam_from_world=torch.from_numpy(moved).to(out.cam_from_world))


def _with_lenses(out: MultiViewOutput, views: Sequence[Prepared], cameras: Sequence[PhotoCamera]) -> MultiViewOutput:
    """The output with the K of the lenses that are known, whose undistorted photos the network saw."""
    K = out.K.double().cpu().numpy().copy()
    for number, (view, one) in enumerate(zip(views, cameras)):
        if not one.camera.is_pinhole:
            K[number] = K_from_centres(view.network_from_image @ one.K)
    return replace(out, K=torch.from_numpy(K).to(out.K))


def _shown(view: Prepared, known: PhotoCamera) -> np.ndarray:
    """(h, w) bool: which pixels of the network's input the photo has."""
    pixels = transform_pixels(np.linalg.inv(view.network_from_image), pixel_grid(view.height, view.width))
    return shown_in_photo(known.camera, pixels)


@dataclass(frozen=True)
class _Maps:
    """`poses` (V, 4, 4) world_from_cam, `depth` (V, h, w), float64, the point maps, and what was left out of them."""

    poses: np.ndarray
    depth: np.ndarray
    points: list[PointMap]
    note: str


def _maps(
    out: MultiViewOutput, views: Sequence[Prepared], shown: np.ndarray, min_confidence: float | None, world_given: bool
) -> _Maps:
    """The points of all views where the photos are `shown` (V, h, w); without a given world in the first view's
    camera."""
    depth, confidence = (part.double().cpu().numpy() for part in (out.depth, out.confidence))
    poses = inverse(out.cam_from_world.double().cpu().numpy())
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])  # the network's are float32
    if not world_given:
        poses = inverse(poses[0]) @ poses
        poses[0] = np.eye(4)
    sky = np.zeros(depth.shape, bool) if out.sky is None else (out.sky >= SKY).cpu().numpy()
    usable = np.isfinite(depth) & (depth > 0) & ~sky & shown
    if not usable.any():
        raise JobFailed("the model finds nothing but sky in these photos; take others, or leave --metric-model out")
    if min_confidence is None:
        low, high = np.quantile(confidence[usable], [LEFT_OUT, 1 - KEPT_AT_LEAST])
        min_confidence = min(max(LEAST_CONFIDENCE, float(low)), float(high))
    points, edges = [], 0
    Ks = K_to_centres(out.K.double().cpu().numpy())
    for view, z, sure, use, K, pose in zip(views, depth, confidence, usable, Ks, poses):
        valid = use & (sure >= min_confidence)
        at_edges = depth_edges(z, valid)
        edges += int(at_edges.sum())
        world = transform_points(pose, backproject(pixel_grid(*z.shape), z, K))
        colors = np.rint(255 * view.image.transpose(1, 2, 0)).astype(np.uint8)
        points.append(PointMap(world, sure, valid & ~at_edges, colors, np.linalg.inv(view.network_from_image)))
    if not any(one.valid.any() for one in points):
        raise JobFailed(
            f"no point reaches the confidence {min_confidence:.3g} on a surface; lower --min-confidence, or take "
            "photos that overlap more"
        )
    note = f"points of a confidence of {min_confidence:.3g} or more are kept"
    return _Maps(poses, depth, points, f"{note}; {edges} points on depth edges left out" if edges else note)


def _consistency(
    maps: _Maps, Ks: np.ndarray, views: Sequence[Prepared], indices: Sequence[int]
) -> tuple[tuple[ImagePair, ...], float, float]:
    """How the views' maps agree: for each pair of views the points of the first that the second sees, and how many of
    these have its depth within TOLERANCE; the error (RMS) in pixels of the photo at which the first sees the second's
    point in return; and the median parallax in degrees."""
    count = len(views)
    numbers = combinations(range(count), 2)
    if count > MANY_PHOTOS:
        numbers = ((i, j) for i, j in numbers if j - i <= FOLLOWING)
    pairs, errors, angles = [], [], []
    for i, j in numbers:
        first, second = maps.points[i], maps.points[j]
        y, x = np.nonzero(first.valid[ANCHOR_STEP_PX // 2 :: ANCHOR_STEP_PX, ANCHOR_STEP_PX // 2 :: ANCHOR_STEP_PX])
        y, x = (ANCHOR_STEP_PX // 2 + ANCHOR_STEP_PX * part for part in (y, x))
        world = first.points_world[y, x]
        seen = transform_points(inverse(maps.poses[j]), world)
        pixels = project(seen, Ks[j])
        height, width = second.valid.shape
        inside = (seen[:, 2] > 0) & (
            np.abs(pixels - [(width - 1) / 2, (height - 1) / 2]) < [width / 2, height / 2]
        ).all(1)
        column, row = np.rint(np.where(inside[:, None], pixels, 0)).astype(int).clip(0, [width - 1, height - 1]).T
        inside &= second.valid[row, column]
        near = inside & (np.abs(maps.depth[j][row, column] - seen[:, 2]) < TOLERANCE * seen[:, 2])
        pairs.append(ImagePair((indices[i], indices[j]), int(inside.sum()), int(near.sum())))
        if near.any():
            back = project(transform_points(inverse(maps.poses[i]), second.points_world[row, column][near]), Ks[i])
            image = [transform_pixels(first.image_from_map, part) for part in (back, np.stack([x, y], -1)[near])]
            errors.append(((image[0] - image[1]) ** 2).sum(-1))
            angles.append(vector_angle(world[near] - maps.poses[i, :3, 3], world[near] - maps.poses[j, :3, 3]))
    if not errors:
        return tuple(pairs), float("nan"), 0.0
    return (
        tuple(pairs),
        float(np.sqrt(np.concatenate(errors).mean())),
        float(np.degrees(np.median(np.concatenate(angles)))),
    )


def _scaled(scene: Scene, baseline: float | None, metric: bool) -> Scene:
    """In metres by the baseline; else, where it is not metric, with the step between cameras that moved as the unit."""
    if baseline is not None:
        return scale_by_baseline(scene, baseline, None)
    if metric:
        return scene
    centres = np.stack([scene.views[index].world_from_cam[:3, 3] for index in scene.registered])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    depth = np.median(
        [np.nanmedian(view.depth) for view in scene.views if view.dense is not None and view.dense.valid.any()]
    )
    moved = steps[steps > MIN_BASELINE_SHARE * depth]
    if not len(moved):
        return replace(scene, scale_note=SCALE_OF_STILL_CAMERAS)
    return scene.scaled(1 / float(np.median(moved)), "arbitrary", scene.scale_note)
