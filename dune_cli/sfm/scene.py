"""The results of a reconstruction: the mapper's sparse model, and the scene with its views, points and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import transform_pixels
from dune_cli.geometry.depth_maps import grid_triangles, used_vertices
from dune_cli.geometry.poses import add_world_offset, inverse, transform_points
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.geometry.sim3 import move_poses, scale_of
from dune_cli.io.crs import WorldFrame
from dune_cli.io.meshes import Frustum, Mesh
from dune_cli.io.orientation import UPRIGHT
from dune_cli.provenance import Source

NO_K = np.full((3, 3), np.nan)  # of a panorama
LARGE_COORDINATES_NOTE = (
    "the poses' coordinates are large: PLY and NPZ have them in double precision, GLB and OBJ less the world_offset "
    "that the JSON names"
)


class CameraSd(NamedTuple):
    """Standard deviations of a calibrated camera: of the logarithm of its focal length, of its distortion's parameters,
    and of its principal point in pixels."""

    log_focal: float
    distortion: tuple[float, ...]
    principal_px: tuple[float, ...]


@dataclass(frozen=True)
class SfmModel:
    """A sparse model of some of the photos, as the mapper gives it. Photos and cameras go by their index.

    `cameras`: by their index. `world_from_cam`: photo -> (4, 4). `points_world` (M, 3), `errors_px` (M,)
    mean reprojection errors. `observations`: photo -> indices (K,) of the points that it sees, and of its keypoints
    there. `camera_sd`: of calibrated cameras. `modes`: photo -> (M, 10) as in
    `geometry.bundle_adjustment.AdjustedBundle`.
    """

    cameras: dict[int, Camera]
    world_from_cam: dict[int, np.ndarray]
    points_world: np.ndarray
    errors_px: np.ndarray
    observations: dict[int, tuple[np.ndarray, np.ndarray]]
    camera_sd: dict[int, CameraSd] = field(default_factory=dict)
    modes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def error_px(self) -> float:
        """Root mean square over the points."""
        return float(np.sqrt(np.mean(self.errors_px**2))) if len(self.errors_px) else float("inf")

    def score(self, pixel_size: float) -> float:
        """The number of observations, each weighted less the larger its point's error is. `pixel_size`: pixels of a
        photo per matched pixel."""
        weights = 1 / (1 + (self.errors_px / pixel_size) ** 2)
        return float(sum(weights[index].sum() for index, _ in self.observations.values()))


@dataclass(frozen=True)
class PointMap:
    """A view's dense points on its own pixel grid (h, w), which may be coarser than the photo.

    `points_world` (h, w, 3), `confidence` (h, w). `valid` (h, w) bool: the other points are NaN or below the requested
    confidence. `colors` (h, w, 3) uint8. `image_from_map` (3, 3): the photo's pixels from the map's; those of the
    undistorted photo, where the view's `lens` has distortion. `filled` (h, w) bool: valid pixels whose depth is a
    network's, not measured (mvs.depth_fill); None where nothing was to be filled. `sky` (h, w) bool: pixels that show
    sky, where there are no points; None where it was not looked for or not found.
    """

    points_world: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray
    colors: np.ndarray
    image_from_map: np.ndarray
    filled: np.ndarray | None = None
    sky: np.ndarray | None = None

    def intrinsics(self, K: np.ndarray) -> np.ndarray:
        """(3, 3) in the map's pixels, of a camera with `K` (3, 3) in those of the undistorted photo."""
        return np.linalg.inv(self.image_from_map) @ K

    @property
    def measured(self) -> np.ndarray:
        """(h, w) bool: the valid pixels that no network filled."""
        return self.valid if self.filled is None else self.valid & ~self.filled

    def without_filled(self, dropped: np.ndarray) -> PointMap:
        """Without those filled pixels that are `dropped` (h, w)."""
        if self.filled is None:
            return self
        dropped = dropped & self.filled
        return replace(self, valid=self.valid & ~dropped, filled=self.filled & ~dropped)


@dataclass(frozen=True)
class FusedCloud:
    """The views' dense points fused to one cloud: `points_world` (M, 3), `colors` (M, 3) uint8, unit `normals` (M, 3),
    `confidence` (M,)."""

    points_world: np.ndarray
    colors: np.ndarray
    normals: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """The uncertainty of a view's calibrated camera.

    `focal_before_px`: the focal length before calibration. `focal_sd`: standard deviation of the focal length, as a
    share of it. `distortion_sd`: those of the parameters of its distortion. `principal_sd_px` (2,): that of its
    principal point, estimated or not. `modes` (M, 10): independent errors of the scene's cameras, one standard
    deviation each, as they change this view: the logarithm of its focal length, its radial term, its principal point in
    pixels, the rotation vector about the world's axes in radians, and the centre.
    """

    focal_before_px: float
    focal_sd: float
    distortion_sd: tuple[float, ...]
    principal_sd_px: tuple[float, ...]
    modes: np.ndarray

    def transformed(self, rotation: np.ndarray, factor: float = 1.0) -> Calibration:
        """In a world rotated by `rotation` (3, 3), lengths times `factor`."""
        intrinsics, rotvec, centre = self.modes[:, :4], self.modes[:, 4:7], self.modes[:, 7:]
        modes = np.concatenate([intrinsics, rotvec @ rotation.T, factor * centre @ rotation.T], axis=1)
        return replace(self, modes=modes)


@dataclass(frozen=True)
class View:
    """A photo's camera: `K` (3, 3) in pixels of the photo, `focal_source` given | exif | estimated | default,
    `world_from_cam` (4, 4), and its dense points where there are any.

    A photo that could not be registered has `registered` False, the `reason`, and a `world_from_cam` of NaN. `lens`:
    the camera with its distortion, whose pinhole part is K; None for a pinhole camera. Size, K, lens, pose and maps are
    those of the upright photo; `orientation` is that of its file's pixels (EXIF). A panorama has its sphere as `lens`,
    and NO_K.
    """

    image: str
    width: int
    height: int
    K: np.ndarray
    focal_source: str
    world_from_cam: np.ndarray
    registered: bool = True
    dense: PointMap | None = None
    lens: Camera | None = None
    reason: str | None = None
    orientation: int = UPRIGHT
    calibration: Calibration | None = None

    @property
    def camera(self) -> Camera:
        """The lens, or the pinhole camera of K."""
        return Camera.pinhole(self.K, self.width, self.height) if self.lens is None else self.lens

    @property
    def is_panorama(self) -> bool:
        return self.lens is not None and self.lens.is_panorama

    @property
    def focal_px(self) -> float:
        """The geometric mean of the focal lengths; of a panorama that of a picture with its pixels' size."""
        if self.is_panorama:
            return self.width / (2 * np.pi)
        return float(np.sqrt(self.K[0, 0] * self.K[1, 1]))

    @property
    def frustum(self) -> Frustum:
        """The camera to draw; of a panorama a square picture of 90 degrees along its axis."""
        if not self.is_panorama:
            return Frustum(self.K, self.world_from_cam, self.width, self.height, self.image)
        return Frustum.of_sphere(self.world_from_cam, self.width, self.image)

    @property
    def radial(self) -> float:
        """COLMAP's k of SIMPLE_RADIAL: a point at (x, y) on the plane z = 1 projects to K (x, y) (1 + k (x² + y²)). 0
        for other models."""
        return 0.0 if self.lens is None or self.lens.model != "SIMPLE_RADIAL" else self.lens.first_radial

    @property
    def depth(self) -> np.ndarray | None:
        """(h, w) z of the dense points in this camera, NaN where not valid."""
        if self.dense is None:
            return None
        z = transform_points(inverse(self.world_from_cam), self.dense.points_world)[..., 2]
        return np.where(self.dense.valid, z, np.nan)


Observations = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SparsePoints:
    """Triangulated matches: `points_world` (M, 3), `colors` (M, 3) uint8, `confidence` (M,) in [0, 1].

    `observations` of each view of the scene: the indices (K,) of the points that it sees, and their pixels (K, 2) in
    the photo.
    """

    points_world: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray
    observations: tuple[Observations, ...]

    @classmethod
    def from_full_tracks(
        cls, points_world: np.ndarray, colors: np.ndarray, confidence: np.ndarray, pixels: Sequence[np.ndarray]
    ) -> SparsePoints:
        """Points that every view sees. `pixels` (M, 2): their pixels in each view."""
        indices = np.arange(len(points_world))
        return cls(points_world, colors, confidence, tuple((indices, view_pixels) for view_pixels in pixels))


@dataclass(frozen=True)
class ImagePair:
    """Two views that were matched: how many matches they have, and how many of these agree with the pose.

    `pose_confidence`: that of the pair's pose; None for pairs of point maps. `contradicts_scene`: they agree with a
    motion that is not that of the scene.
    """

    images: tuple[int, int]
    matches: int
    inliers: int
    pose_confidence: float | None = None
    contradicts_scene: bool = False

    @property
    def confidence(self) -> float:
        """In [0, 1]: the pose confidence, as in `dune reloc`; without one the inlier ratio."""
        return self.inliers / max(self.matches, 1) if self.pose_confidence is None else self.pose_confidence


@dataclass(frozen=True)
class MaskedKeypoints:
    """How many of the photos' `keypoints` were `masked`, and how many of these `by` each name (--masks, a class); one
    keypoint may count for several. `without`: names of photos all of whose keypoints were masked. Of two photos the
    keypoints are those that matched; point maps have none, and `keypoints` is None."""

    keypoints: int | None
    masked: int
    by: Mapping[str, int]
    without: tuple[str, ...] = ()

    def joined(self, other: MaskedKeypoints) -> MaskedKeypoints:
        """With the keypoints of another matcher, of some of the photos."""
        by = {name: count + other.by.get(name, 0) for name, count in self.by.items()}
        total = (self.keypoints or 0) + (other.keypoints or 0)
        return MaskedKeypoints(total, self.masked + other.masked, by, self.without)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        if self.keypoints is None:
            return (f"masked by {', '.join(self.by)}: there are no points there",)
        by = ", ".join(f"{name} {count}" for name, count in self.by.items())
        note = f"{self.masked} of {self.keypoints} keypoints are masked and not used ({by})"
        return note, *(f"the mask covers all keypoints of {name}" for name in self.without)


@dataclass(frozen=True)
class ScaleEstimate:
    """How long a scene's unit is: `metres`. `source`: what tells it, a value of --scale-from. `relative_sd`: its
    standard deviation as a share of it, None where that is not known. `details`: for the JSON; `notes` are for the
    user."""

    source: str
    metres: float
    relative_sd: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gravity:
    """The direction `down` (3,) in the world; what told it: gimbal, vertical edges or level photos; its standard
    deviation; and how many `photos` were asked."""

    down: np.ndarray
    source: str
    sd_deg: float
    photos: int


@dataclass(frozen=True)
class PositionAdjustment:
    """What the adjustment of a model to positions of its cameras changed.

    `source`: what the positions are from. Of each photo with one, by its index: whether the position `agrees` and was
    used, and its distance in metres before, after one similarity. `sigma`: standard deviation of a coordinate of a
    position, in units of the stated or assumed one. Root mean square distances of those used, before and after;
    `moved_m`: the farthest that a camera went; median reprojection errors.
    """

    source: str
    agrees: Mapping[int, bool]
    before_m: Mapping[int, float]
    sigma: float
    rms_before_m: float
    rms_after_m: float
    moved_m: float
    error_before_px: float
    error_after_px: float


@dataclass(frozen=True)
class PositionResidual:
    """A photo with a position: `residual` (3,), where the scene has its camera less the position, in metres along the
    world's axes; `sd_m` (3,), what the position's standard deviations are taken to be; whether it is an `outlier`,
    which was not used; `before_m`, the distance before the cameras were adjusted to the positions, where they were."""

    image: str
    residual: np.ndarray
    sd_m: np.ndarray
    outlier: bool
    before_m: float | None = None


@dataclass(frozen=True)
class Georeference:
    """The place of a scene on earth: its coordinates plus `offset` (3,) are those of `frame`.

    `source`: what the positions are from. `rms_m`: root mean square distance of the positions that were used. `sigma`:
    standard deviation of a coordinate in units of the `residuals`' `sd_m`. `scale_sd` and `roll_sd_deg`: what the
    positions leave open of the scale (a share) and of the rotation about the line that is closest to them; `roll_from`
    what tells it: positions, gimbal or level cameras. `details`: for the JSON.
    """

    frame: WorldFrame
    offset: np.ndarray
    source: str
    residuals: tuple[PositionResidual, ...]
    rms_m: float
    sigma: float
    scale_sd: float
    roll_sd_deg: float
    roll_from: str = "positions"
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outliers(self) -> list[str]:
        """The photos whose positions are wrong."""
        return [one.image for one in self.residuals if one.outlier]

    def geodetic(self, points: np.ndarray) -> np.ndarray:
        """Latitudes and longitudes in degrees (WGS84) and heights (..., 3) of points of the scene."""
        return self.frame.to_geodetic(np.asarray(points, np.float64) + self.offset)


@dataclass(frozen=True)
class Scene:
    """The result of `dune reconstruct`: `views` in the order of the photos, unregistered ones among them.

    The world is the camera of the first registered view, unless `world` names another frame. `scale` is "metric"
    (metres) or "arbitrary"; `scale_note` then says why. `parallax_deg`: median angle between a point's rays.
    `components`: the view indices of each connected component of the photos, where there are several; the reconstructed
    one comes first. `fused` and `surface`: the dense points as one cloud and one mesh. `notes` are for the user.
    `sources`: the matcher or model, with its licence. `world_offset` (3,): what was subtracted from all coordinates of
    the scene, where the world's are large; `in_world` and `pose_in_world` add it for the files. `georeference`: the
    place on earth, whose own offset the files do not add, LAS and GeoJSON apart. `scale_from`: what told metres, where
    that was no method's own. `masked`: what masks left out, where there were any. `rigs`: what holds photos together,
    by their view's index. `perspective`: of a scene with panoramas, the same scene of perspective views. `adjustment`:
    what the positions changed in the cameras, where they were adjusted to them. `gravity`: of a world that was turned
    upright.
    """

    method: str
    views: tuple[View, ...]
    pairs: tuple[ImagePair, ...]
    sparse: SparsePoints | None
    scale: str
    scale_note: str | None
    reprojection_error_px: float
    parallax_deg: float
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    components: tuple[tuple[int, ...], ...] = ()
    fused: FusedCloud | None = None
    surface: Mesh | None = None
    world: str | None = None
    world_offset: np.ndarray | None = None
    masked: MaskedKeypoints | None = None
    georeference: Georeference | None = None
    scale_from: ScaleEstimate | None = None
    rigs: Rigs = NO_RIGS
    perspective: PerspectiveScene | None = None
    adjustment: PositionAdjustment | None = None
    gravity: Gravity | None = None

    def in_perspective(self, photos: Sequence[Path]) -> tuple[Scene, Sequence[Path]]:
        """The scene of perspective views and the file of each, from the `photos` of this one: itself, unless it has
        panoramas. It has the surface of this one, and its notes."""
        if self.perspective is None:
            return self, photos
        flat = self.perspective
        return replace(flat.scene, fused=self.fused, surface=self.surface, notes=self.notes), flat.files

    @property
    def registered(self) -> list[int]:
        """The indices of the views that have a pose."""
        return [index for index, view in enumerate(self.views) if view.registered]

    @property
    def is_dense(self) -> bool:
        return any(view.dense is not None for view in self._mapped_views)

    @property
    def _mapped_views(self) -> tuple[View, ...]:
        """The views that dense maps belong to."""
        return self.views if self.perspective is None else self.perspective.scene.views

    @property
    def coverage(self) -> float:
        """The share of the dense maps' pixels that have a measured point; 0 without dense maps."""
        return self._share(lambda dense: dense.measured)

    @property
    def filled_share(self) -> float | None:
        """The share of the dense maps' pixels that a network filled; None where that was not asked for."""
        if all(view.dense is None or view.dense.filled is None for view in self._mapped_views):
            return None
        return self._share(lambda dense: dense.valid & ~dense.measured)

    @property
    def sky_share(self) -> float | None:
        """The share of the dense maps' pixels that show sky; None where none was looked for, or none found."""
        if all(view.dense is None or view.dense.sky is None for view in self._mapped_views):
            return None
        return self._share(lambda dense: np.zeros_like(dense.valid) if dense.sky is None else dense.sky)

    def _share(self, chosen: Callable[[PointMap], np.ndarray]) -> float:
        maps = [chosen(view.dense).ravel() for view in self._mapped_views if view.dense is not None]
        return float(np.concatenate(maps).mean()) if maps else 0.0

    def cloud(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (M, 3), colours (M, 3) uint8, confidence (M,): the fused cloud. Without one: the dense points of all
        views, and the sparse points where no view has a dense point."""
        if self.fused is not None:
            return self.fused.points_world, self.fused.colors, self.fused.confidence
        if self.perspective is not None:
            return self.perspective.scene.cloud()
        parts = [
            (m.points_world[m.valid], m.colors[m.valid], m.confidence[m.valid])
            for m in (view.dense for view in self.views)
            if m is not None
        ]
        if self.sparse is not None:
            new = np.ones(len(self.sparse.points_world), dtype=bool)
            for view, (index, pixels) in zip(self.views, self.sparse.observations):
                new[index[_covered(view, pixels)]] = False
            parts.append((self.sparse.points_world[new], self.sparse.colors[new], self.sparse.confidence[new]))
        points, colors, confidence = (np.concatenate(column) for column in zip(*parts))
        return points, colors, confidence

    def meshes(self) -> list[Mesh]:
        """The fused surface; without one a mesh of each dense map that has triangles, cut at depth edges."""
        if self.surface is not None:
            return [self.surface]
        if self.perspective is not None:
            return self.perspective.scene.meshes()
        meshes = []
        for view in self.views:
            depth = view.depth
            if view.dense is None or depth is None:
                continue
            kept, faces = used_vertices(grid_triangles(depth, view.dense.valid))
            if len(faces):
                points, colors = view.dense.points_world.reshape(-1, 3)[kept], view.dense.colors.reshape(-1, 3)[kept]
                meshes.append(Mesh(points, faces, colors, view.image))
        return meshes

    def in_world(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the scene in the world's coordinates; float64 where there is a `world_offset`."""
        return points if self.world_offset is None else points.astype(np.float64) + self.world_offset

    def pose_in_world(self, view: View) -> np.ndarray:
        """(4, 4) `world_from_cam` of a view of the scene in the world's coordinates."""
        return add_world_offset(view.world_from_cam, self.world_offset)

    def with_masks(self, masked: MaskedKeypoints | None) -> Scene:
        """The same scene with the report of its masks, and notes of it; as it is without masks."""
        return self if masked is None else replace(self, masked=masked, notes=(*self.notes, *masked.notes))

    def frusta(self) -> list[Frustum]:
        """The registered cameras."""
        return [view.frustum for view in self.views if view.registered]

    def scaled(self, factor: float, scale: str, scale_note: str | None) -> Scene:
        """The same scene with all lengths times `factor`."""

        def move(pose: np.ndarray) -> np.ndarray:
            scaled = pose.copy()
            scaled[:3, 3] *= factor
            return scaled

        moved = self._moved(lambda points: points * factor, move, np.eye(3), factor)
        return replace(moved, scale=scale, scale_note=scale_note)

    def transformed(self, new_from_old: np.ndarray) -> Scene:
        """The same scene after a similarity (4, 4), with arrays of the types that they had."""

        def points(old: np.ndarray) -> np.ndarray:
            return transform_points(new_from_old, old).astype(old.dtype)

        factor = float(scale_of(new_from_old))
        return self._moved(points, lambda pose: move_poses(new_from_old, pose), new_from_old[:3, :3] / factor, factor)

    def _moved(
        self,
        points: Callable[[np.ndarray], np.ndarray],
        pose: Callable[[np.ndarray], np.ndarray],
        rotation: np.ndarray,
        factor: float,
    ) -> Scene:
        """With `points` and `pose` applied to all points and poses, in a world rotated by `rotation`, lengths times
        `factor`."""
        views = []
        for view in self.views:
            dense = view.dense and replace(view.dense, points_world=points(view.dense.points_world))
            calibration = view.calibration and view.calibration.transformed(rotation, factor)
            moved = pose(view.world_from_cam) if view.registered else view.world_from_cam
            views.append(replace(view, world_from_cam=moved, dense=dense, calibration=calibration))
        fused = self.fused
        if fused is not None:
            turned = fused.normals if np.array_equal(rotation, np.eye(3)) else fused.normals @ rotation.T
            turned = turned.astype(fused.normals.dtype)
            fused = replace(fused, points_world=points(fused.points_world), normals=turned)
        return replace(
            self,
            views=tuple(views),
            sparse=self.sparse and replace(self.sparse, points_world=points(self.sparse.points_world)),
            fused=fused,
            surface=self.surface and replace(self.surface, vertices=points(self.surface.vertices)),
            rigs=self.rigs.scaled(factor),
            perspective=self.perspective
            and replace(self.perspective, scene=self.perspective.scene._moved(points, pose, rotation, factor)),
        )

    def baseline(self, pair: tuple[int, int] = (0, 1)) -> float:
        """The distance of two cameras, the first two by default."""
        first, second = (self.views[index].world_from_cam[:3, 3] for index in pair)
        return float(np.linalg.norm(second - first))


@dataclass(frozen=True)
class PerspectiveScene:
    """The `scene` of the perspective views that stand for panoramas, and of the other photos; `files` of its views, and
    their masks."""

    scene: Scene
    files: tuple[Path, ...]
    masks: Any = None  # sfm.masks.PhotoMasks, which imports this file


def _covered(view: View, pixels: np.ndarray) -> np.ndarray:
    """(K,) bool: the photo's `pixels` (K, 2) that have a dense point."""
    dense = view.dense
    if dense is None:
        return np.zeros(len(pixels), dtype=bool)
    height, width = dense.valid.shape
    undistorted = view.camera.undistort(pixels)
    seen = np.isfinite(undistorted).all(-1)
    in_map = transform_pixels(np.linalg.inv(dense.image_from_map), np.where(seen[:, None], undistorted, 0.0))
    x, y = np.rint(in_map).astype(int).T
    return seen & dense.valid[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
