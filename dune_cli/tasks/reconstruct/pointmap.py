"""Two photos to a scene by a two-view model: metric point maps, focal lengths from them, and the second pose by PnP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry.cameras import K_from_focal, pixel_grid, transform_pixels
from dune_cli.geometry.focal import focal_from_point_map
from dune_cli.geometry.grid_mesh import depth_edges
from dune_cli.geometry.pnp import AbsolutePose, estimate_absolute_pose
from dune_cli.geometry.poses import inverse, transform_points
from dune_cli.geometry.two_view import parallax_angles
from dune_cli.io.names import relative_names
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct.lengths import by_baseline
from dune_cli.tasks.reconstruct.scene import Pair, PointMap, Scene, View

if TYPE_CHECKING:
    from dune_cli.models.two_view import TwoViewModel

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


def reconstruct(
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
        pairs=(Pair((0, 1), used, int(pose.inliers.sum())),),
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
    return by_baseline(scene, config.baseline, None)


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
