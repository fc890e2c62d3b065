"""Photos to a scene by the point maps of a two-view model.

Two photos: metric point maps of the pair, focal lengths from them, and the second pose by PnP. More photos, or known
poses: point maps of chosen pairs, aligned globally, and each view's maps fused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.absolute_pose import AbsolutePose, estimate_absolute_pose
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import K_from_focal, focal_from_point_map, pixel_grid, project, transform_pixels
from dune_cli.geometry.depth_maps import depth_edges
from dune_cli.geometry.global_alignment import (
    AlignConfig,
    Alignment,
    KnownCameras,
    PairPoints,
    align,
    anchor_points,
)
from dune_cli.geometry.poses import inverse, subtract_world_offset, transform_points, vector_angle, world_offset
from dune_cli.geometry.two_view import parallax_angles
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import Photo, read_photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.io.undistortion import prepared_photo, shown_in_photo
from dune_cli.provenance import Run
from dune_cli.sfm.pairs import select_pairs
from dune_cli.sfm.scale import check_distinct_centres, scale_by_baseline
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, ImagePair, PointMap, Scene, View
from dune_cli.tasks.reconstruct.config import CamerasOf, PointmapsConfig, lenses_of
from dune_cli.tasks.reconstruct.pairwise_pointmaps import EncodedPhoto, PairDecoder, fuse_pointmaps

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel

MIN_POINTS = 100
MAX_PNP_POINTS = 20_000
PNP_THRESHOLD_PX = 3.0  # in pixels of the network's input
MIN_INLIER_SHARE = 0.1
NO_POSE = np.full((4, 4), np.nan)
SCALE_OF_POSES = "lengths are those of --poses"
RefineCameras = Callable[[Alignment, PairPoints], Alignment]


def reconstruct(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    model: TwoViewModel,
    config: PointmapsConfig,
    run: Run,
    cache: WorkFolder | None = None,
    known_poses: Mapping[Path, np.ndarray] | None = None,
    refine_cameras: RefineCameras | None = None,
) -> Scene:
    """The scene of two or more photos, with dense points.

    `cameras_of` gives the camera of each photo; a "default" K is estimated, and photos with a lens are undistorted for
    the model. Of more than two photos: `cache` keeps tokens and maps for the next run (None: nothing is kept);
    `known_poses`, photo -> `world_from_cam` (4, 4), set the world, less the scene's `world_offset` where coordinates
    are large; `refine_cameras` may improve the aligned cameras.

    Raises JobFailed where no two photos give a scene: too few points are confident, no focal length fits them, no pose
    does, or no two photos' maps agree. UserError for pairs that do not fit, and for a baseline beside known poses.
    """
    if config.is_stereo_pair(paths, known_poses):
        with run.stage("read"):
            photos = [read_photo(path) for path in paths]
            cameras = cameras_of([photo.info for photo in photos])
        return reconstruct_pair(photos, cameras, model, config, run)
    if cache is None:
        with scratch_folder() as folder:
            return reconstruct(paths, cameras_of, model, config, run, WorkFolder(folder), known_poses, refine_cameras)
    scene = _reconstruct_many(paths, cameras_of, model, config, run, cache, known_poses or {}, refine_cameras)
    if not config.fuse:
        return scene
    from dune_cli.mvs.densify import fuse_scene

    return fuse_scene(scene, config.mesh, run)


def _reconstruct_many(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    model: TwoViewModel,
    config: PointmapsConfig,
    run: Run,
    cache: WorkFolder,
    known_poses: Mapping[Path, np.ndarray],
    refine_cameras: RefineCameras | None,
) -> Scene:
    """The scene of aligned point maps. A photo is encoded once; the means of its tokens are the descriptors of pair
    retrieval."""
    decoder = PairDecoder(model, config.size_px or model.size, cache)
    with run.stage("encode"):
        encoded = decoder.encode(paths, lenses_of(paths, cameras_of))
    indices = _distinct(encoded)
    if len(indices) < 2:
        raise JobFailed(f"all {len(encoded)} photos are the same picture; take photos from different places")
    photos = [encoded[index] for index in indices]
    cameras = cameras_of([photo.info for photo in encoded])
    selection = select_pairs(
        config.pairs,
        [photo.info.path for photo in photos],
        config.neighbours,
        config.ordered,
        lambda: np.stack([photo.descriptor for photo in photos]),
    )
    pairs = selection.pairs
    console.note(f"{len(encoded)} photos, {len(pairs)} pairs ({selection.strategy}), each decoded in both orders")
    with run.stage("decode"):
        data = decoder.decode(photos, pairs, config.min_confidence)
    if config.masks is not None:
        used = [config.masks.used_at(one.info.path, one.in_photo(at)) for one, at in zip(photos, data.anchors)]
        data = replace(data, confidence=np.where(np.stack(used)[data.pairs], data.confidence, 0.0))
    paired = sorted({view for pair in pairs for view in pair})
    if len(paired) < len(photos):  # a user's list of pairs need not name all
        indices, photos = [indices[v] for v in paired], [photos[v] for v in paired]
        data = _renumbered(data, paired)
    if not (data.confidence > 0).any():
        raise JobFailed(
            f"no point of any pair reaches the confidence {config.min_confidence:g}: the photos may not show one "
            "place; take photos that overlap more, or lower --min-confidence"
        )
    check_distinct_centres(known_poses)
    offset = world_offset(np.array([pose[:3, 3] for pose in known_poses.values()]))
    known_poses = {path: subtract_world_offset(pose, offset) for path, pose in known_poses.items()}
    known = _known_cameras(photos, [cameras[i] for i in indices], known_poses, config.fixed_poses)
    has_poses = bool(known.has_pose.any())
    with run.stage("align"):
        alignment = align(data, known, AlignConfig(seed=config.seed))
        if alignment is None or np.count_nonzero(alignment.registered) < 2:
            raise JobFailed(
                f"the point maps of no two of the {len(photos)} photos agree; take photos that overlap by half or "
                "more, or use --method matches"
            )
        if refine_cameras is not None:
            alignment = refine_cameras(alignment, data)
    with run.stage("dense"):
        maps = [fuse_pointmaps(decoder, photos, data, alignment, v, config.min_confidence) for v in range(len(photos))]
        if config.masks is not None:
            maps = [one and config.masks.on_map(one, photo.info.path, photo.lens) for one, photo in zip(maps, photos)]
    views = _views(encoded, indices, cameras, alignment, maps)
    components = tuple(tuple(indices[v] for v in component) for component in alignment.groups)
    scene = Scene(
        method="pointmap",
        views=views,
        pairs=_image_pairs(data, alignment, indices),
        sparse=None,
        scale="arbitrary" if has_poses else "metric",
        scale_note=SCALE_OF_POSES if has_poses else None,
        reprojection_error_px=_reprojection_error_px(data, alignment),
        parallax_deg=_parallax_deg(data, alignment),
        sources=(model.source,),
        components=components if len(components) > 1 else (),
        world="that of --poses" if has_poses else None,
        world_offset=offset,
        notes=() if offset is None else (LARGE_COORDINATES_NOTE,),
    )
    _check_points(scene)
    scene = scene.with_masks(config.masks and config.masks.of_point_maps)
    if config.baseline is None:
        return scene
    if has_poses:
        raise UserError("--poses and --baseline both set the scale; give one of them")
    return scale_by_baseline(scene, config.baseline, None)


def _check_points(scene: Scene) -> None:
    if not any(view.dense is not None and view.dense.valid.any() for view in scene.views):
        raise JobFailed("no point lies on a surface: the model's point maps are noise for these photos")


def _distinct(photos: Sequence[EncodedPhoto]) -> list[int]:
    """Indices without the photos whose file equals an earlier one."""
    first: dict[str, int] = {}
    return [i for i, photo in enumerate(photos) if first.setdefault(photo.info.sha256, i) == i]


def _renumbered(data: PairPoints, views: Sequence[int]) -> PairPoints:
    """The data of `views` alone, numbered by their order."""
    number = {view: index for index, view in enumerate(views)}
    pairs = np.array([[number[i], number[j]] for i, j in data.pairs.tolist()], np.int64)
    return PairPoints(pairs, data.points, data.confidence, data.anchors[list(views)], data.sizes[list(views)])


def _known_cameras(
    photos: Sequence[EncodedPhoto], cameras: Sequence[PhotoCamera], poses: Mapping[Path, np.ndarray], fixed_poses: bool
) -> KnownCameras:
    known = KnownCameras.nothing(len(photos))
    for index, (photo, camera) in enumerate(zip(photos, cameras)):
        if camera.source != "default":
            known.K[index] = camera.K
        if photo.info.path in poses:
            known.world_from_cam[index] = poses[photo.info.path]
    return KnownCameras(known.K, known.world_from_cam, poses_are_priors=not fixed_poses)


def _views(
    encoded: Sequence[EncodedPhoto],
    indices: Sequence[int],
    cameras: Sequence[PhotoCamera],
    alignment: Alignment,
    maps: Sequence[PointMap | None],
) -> tuple[View, ...]:
    """The views of all photos; `indices`: the photo of each aligned view."""
    view_of = {index: v for v, index in enumerate(indices)}
    names = relative_names([photo.info.path for photo in encoded])
    first_of = {photo.info.sha256: i for i, photo in reversed(list(enumerate(encoded)))}
    views = []
    for index, (photo, camera) in enumerate(zip(encoded, cameras)):
        info, v, K, source = photo.info, view_of.get(index), camera.K, camera.source
        pose, reason, dense = NO_POSE, None, None
        if v is None:
            first = first_of[info.sha256]
            reason = f"it is the same picture as {names[first]}" if first != index else "it is in none of the pairs"
        elif not alignment.registered[v]:
            component = next((group for group in alignment.groups[1:] if v in group), ())
            others = ", ".join(names[indices[u]] for u in component if u != v)
            reason = (
                f"it hangs together only with {others}, and not with the photos that were placed"
                if others
                else "its point maps agree with those of no other photo"
            )
        else:
            pose, dense = alignment.world_from_cam[v], maps[v]
            if source == "default":
                K, source = alignment.K[v], "estimated"
        views.append(
            View(
                image=names[index],
                width=info.width,
                height=info.height,
                K=K,
                focal_source=source,
                world_from_cam=pose,
                registered=reason is None,
                dense=dense,
                lens=photo.lens,
                reason=reason,
                orientation=info.orientation,
            )
        )
    return tuple(views)


def _image_pairs(data: PairPoints, alignment: Alignment, indices: Sequence[int]) -> tuple[ImagePair, ...]:
    """Both orders of a pair as one: its anchors, and those that agree with the alignment."""
    counts: dict[tuple[int, int], list[float]] = {}
    for (i, j), confidence, inlier_share in zip(data.pairs.tolist(), data.confidence, alignment.pair_inliers):
        total = counts.setdefault((indices[min(i, j)], indices[max(i, j)]), [0, 0.0])
        used = int((confidence > 0).sum())
        total[0] += used
        total[1] += inlier_share * used
    return tuple(ImagePair(images, int(used), int(inliers)) for images, (used, inliers) in sorted(counts.items()))


def _inlier_anchors(data: PairPoints, alignment: Alignment) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Of each pair of registered views (first, second, points in the world of the second view's anchors, their pixels),
    for the anchors that agree with the alignment."""
    aligned = anchor_points(alignment, data.anchors)
    inliers = []
    for row, (i, j) in enumerate(data.pairs.tolist()):
        if not (alignment.registered[i] and alignment.registered[j]):
            continue
        world = transform_points(alignment.world_from_cam[i], alignment.pair_scale[row] * data.points[row, 1])
        distance = np.linalg.norm(world - alignment.world_from_cam[i, :3, 3], axis=1)
        near = np.linalg.norm(world - aligned[j], axis=1) < AlignConfig().tolerance * distance
        keep = near & (data.confidence[row, 1] > 0)
        if keep.any():
            inliers.append((i, j, world[keep], data.anchors[j][keep]))
    return inliers


def _reprojection_error_px(data: PairPoints, alignment: Alignment) -> float:
    """Root mean square."""
    squares = []
    for _, j, world, pixels in _inlier_anchors(data, alignment):
        points = transform_points(inverse(alignment.world_from_cam[j]), world)
        error = project(points, alignment.K[j]) - pixels
        squares.append((error**2).sum(-1)[points[:, 2] > 0])
    return float(np.sqrt(np.concatenate(squares).mean())) if squares else float("nan")


def _parallax_deg(data: PairPoints, alignment: Alignment) -> float:
    centres = alignment.world_from_cam[:, :3, 3]
    angles = [
        vector_angle(world - centres[i], world - centres[j]) for i, j, world, _ in _inlier_anchors(data, alignment)
    ]
    return float(np.degrees(np.median(np.concatenate(angles)))) if angles else 0.0


@dataclass(frozen=True)
class ViewMap:
    """One view's points in some camera's frame (h, w, 3), their confidence (h, w), and pixels in the photo (h, w,
    2)."""

    points: np.ndarray
    confidence: np.ndarray
    pixels: np.ndarray

    def only(self, used: np.ndarray) -> ViewMap:
        """Without points where `used` (h, w) is False."""
        return replace(self, points=np.where(used[..., None], self.points, np.nan))

    def confident(self, minimum: float) -> np.ndarray:
        return (self.confidence >= minimum) & np.isfinite(self.points).all(-1)


def reconstruct_pair(
    photos: Sequence[Photo], known: Sequence[PhotoCamera], model: TwoViewModel, config: PointmapsConfig, run: Run
) -> Scene:
    """The scene of two photos with their `known` cameras. A "default" K is replaced: camera 1's focal length comes from
    its own map, camera 2's from the map of the swapped pair. Raises JobFailed as `reconstruct` does."""
    size_px = config.size_px or model.size

    def prepare_view(rgb: np.ndarray) -> Prepared:
        return prepare(rgb, size_px, model.patch, model.crop_square_to_4_3)

    inputs = [prepared_photo(photo.rgb, one.camera, prepare_view) for photo, one in zip(photos, known)]
    default = [one.source == "default" for one in known]
    with run.stage("network"):
        maps, own_map2 = predict(model, inputs, swapped=default[1])
    used = [_used(config, photo, one.camera, view_map.pixels) for photo, one, view_map in zip(photos, known, maps)]
    maps, own_map2 = [view_map.only(shown) for view_map, shown in zip(maps, used)], own_map2.only(used[1])
    with run.stage("pose"):
        cameras = []
        for photo, one, own_map, unknown in zip(photos, known, (maps[0], own_map2), default):
            cameras.append(
                (_estimated_K(photo, own_map, config.min_confidence), "estimated") if unknown else (one.K, one.source)
            )
        pose, count = _second_pose(photos[1], maps[1], cameras[1][0], inputs[1], config)
    views, edge_points = [], 0
    lenses = [one.lens for one in known]
    names = relative_names([photo.path for photo in photos])
    cam_from_world = (np.eye(4), pose.cam_from_world)
    rows = zip(names, photos, cameras, maps, inputs, cam_from_world, lenses)
    for name, photo, (K, source), one, prepared, to_cam, lens in rows:
        depth = transform_points(to_cam, one.points)[..., 2]
        confident = one.confident(config.min_confidence) & (depth > 0)
        edges = depth_edges(depth, confident)
        edge_points += int(edges.sum())
        colors = np.rint(255 * prepared.image.transpose(1, 2, 0)).astype(np.uint8)
        image_from_map = np.linalg.inv(prepared.network_from_image)
        dense = PointMap(one.points, one.confidence, confident & ~edges, colors, image_from_map)
        described = (name, photo.width, photo.height, K, source, inverse(to_cam))
        views.append(View(*described, dense=dense, lens=lens, orientation=photo.orientation))
    shared = maps[1].points[maps[1].confident(config.min_confidence)]
    scene = Scene(
        method="pointmap",
        views=tuple(views),
        pairs=(ImagePair((0, 1), count, int(pose.inliers.sum())),),
        sparse=None,
        scale="metric",
        scale_note=None,
        reprojection_error_px=pose.reprojection_error_px,
        parallax_deg=float(np.degrees(np.median(parallax_angles(shared, pose.cam_from_world)))),
        sources=(model.source,),
        notes=(f"{edge_points} points on depth edges left out",) if edge_points else (),
    )
    _check_points(scene)
    scene = scene.with_masks(config.masks and config.masks.of_point_maps)
    return scene if config.baseline is None else scale_by_baseline(scene, config.baseline, None)


def _used(config: PointmapsConfig, photo: Photo, camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """(...) bool: whether the photo shows `pixels` (..., 2) of the undistorted photo, and no mask covers them."""
    used = shown_in_photo(camera, pixels)
    return used if config.masks is None else used & config.masks.used_at(photo.path, camera.distort(pixels))


def predict(model: TwoViewModel, inputs: Sequence[Prepared], swapped: bool) -> tuple[list[ViewMap], ViewMap]:
    """Both views' maps in camera 1's frame, and view 2's in its own frame: the swapped pair's if `swapped`, else the
    same one."""
    import torch

    device = next(model.parameters()).device
    pixels = [transform_pixels(np.linalg.inv(p.network_from_image), pixel_grid(p.height, p.width)) for p in inputs]

    def view_map(points: torch.Tensor | None, confidence: torch.Tensor | None, view: int) -> ViewMap:
        assert points is not None and confidence is not None
        arrays = [t[0].float().cpu().numpy().astype(np.float64) for t in (points, confidence)]
        return ViewMap(arrays[0], arrays[1], pixels[view])

    with torch.inference_mode():
        features = [model.encode(torch.from_numpy(p.image)[None].to(device)) for p in inputs]
        out = model.decode(*features, descriptors=False)
        maps = [view_map(out.points1, out.confidence1, 0), view_map(out.points2, out.confidence2, 1)]
        if not swapped:
            return maps, maps[1]
        out = model.decode(*features[::-1], descriptors=False)
        return maps, view_map(out.points1, out.confidence1, 1)


def _estimated_K(photo: Photo, own_map: ViewMap, min_confidence: float) -> np.ndarray:
    """Intrinsics from the view's points in its own camera's frame, principal point at the photo's centre."""
    centre = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    confident = own_map.confident(min_confidence)
    focal_px = focal_from_point_map(own_map.points, own_map.pixels, centre, confident)
    if focal_px is None:
        raise JobFailed(
            f"no focal length fits the model's points of {photo.path.name} ({int(confident.sum())} of "
            f"{confident.size} reach the confidence {min_confidence:g}); give --intrinsics, or lower --min-confidence"
        )
    return K_from_focal(focal_px, photo.width, photo.height)


def _second_pose(
    photo: Photo, second: ViewMap, K: np.ndarray, prepared: Prepared, config: PointmapsConfig
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
