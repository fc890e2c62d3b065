"""A photo's pose in a map: matches with the photos of the map, whose points are known, robust PnP, covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import pair_checks, pnp, poses
from dune_cli.geometry.cameras import project
from dune_cli.geometry.pose_covariance import RefinedPose, refine_absolute_pose
from dune_cli.io.photos import Photo
from dune_cli.matchers.base import FeatureMatcher
from dune_cli.tasks.reloc.choose import Candidates
from dune_cli.tasks.reloc.lens import Lens
from dune_cli.tasks.reloc.map_files import PhotoMap
from dune_cli.tasks.reloc.map_points import MapPoints
from dune_cli.tasks.reloc.solve import MIN_CONFIDENCE, PNP_THRESHOLD_PX, confidence_of

MAX_POSITION_STD = 0.25  # of the median distance to the points: beyond it a place is hardly one
FOCAL_FACTORS = np.geomspace(0.5, 2.5, 9)  # on a guessed focal length


@dataclass(frozen=True)
class Query:
    """A photo to be located, and its camera; `focal_source` given | exif | default (then the focal length is looked
    for, too)."""

    photo: Photo
    lens: Lens
    focal_source: str


@dataclass(frozen=True)
class Retrieved:
    """A map image that was matched with the query: its `likeness` (None: all images were taken), the `matches` at
    known points, and how many of these agree with the pose."""

    name: str
    likeness: float | None
    matches: int
    inliers: int


@dataclass(frozen=True)
class Located:
    """Where a query was taken, or why that is not known (`message`; the pose None then).

    `covariance` (6, 6) as in `RefinedPose`: rotation vector about the world's axes (radians), then the camera's centre
    in the map's unit. `matches`: keypoints of the query that match known points, `inliers` of them agree.
    """

    name: str
    map: PhotoMap
    K: np.ndarray | None
    focal_source: str
    size: tuple[int, int] | None
    world_from_query: np.ndarray | None = None
    covariance: np.ndarray | None = None
    matches: int = 0
    inliers: int = 0
    confidence: float = 0.0
    reprojection_error_px: float | None = None
    retrieved: tuple[Retrieved, ...] = ()
    message: str = ""

    @property
    def success(self) -> bool:
        return self.world_from_query is not None

    @property
    def rotation_std_deg(self) -> float | None:
        """Root of the summed variances of the rotation about three axes, in degrees."""
        if self.covariance is None:
            return None
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3]))))

    @property
    def position_std(self) -> np.ndarray | None:
        """(3,) standard deviations of the camera's centre along the world's axes."""
        return None if self.covariance is None else np.sqrt(np.diag(self.covariance)[3:])


@dataclass(frozen=True)
class LocateConfig:
    """`min_confidence` of a pose that is given out; `threshold` of an inlier in pixels of the matched photo; `seed` of
    the random sampling."""

    min_confidence: float = MIN_CONFIDENCE
    threshold: float = PNP_THRESHOLD_PX
    seed: int = 0


def unread(name: str, photo_map: PhotoMap, reason: str) -> Located:
    """A query that could not even be read."""
    return Located(name, photo_map, None, "", None, message=reason)


def locate(query: Query, map_points: MapPoints, candidates: Candidates, config: LocateConfig) -> Located:
    """The query's pose in the map, from its matches with the `candidates`."""
    matcher, photo = map_points.matcher, query.photo
    features = matcher.extract(photo.rgb) if isinstance(matcher, FeatureMatcher) else None
    seen = _see(query, features, map_points, [index for index, _ in candidates])
    size = (photo.width, photo.height)
    found, no_pose, K = None, "", query.lens.K
    chance = float("inf")
    if seen.count:
        found = solve(seen, K, query.focal_source == "default", config)
        if found is not None:
            chance = _log10_chance(seen, found.keypoints, size, query.focal_source == "default", config)
            K = found.pose.K
    confidence = confidence_of(chance)
    inliers = 0 if found is None else found.keypoints
    if found is None or confidence < config.min_confidence:
        no_pose = (
            f"{photo.path.name} does not show enough of the map {map_points.map.folder}: {seen.count} matches with its "
            f"points, of which {inliers or 'too few'} agree on a pose (confidence {confidence:.2f}); take a photo of a "
            "place that the map covers, or try another --matcher"
        )
    elif (spread := float(np.linalg.norm(found.pose.position_std)) / found.distance) > MAX_POSITION_STD:
        no_pose = (
            f"{photo.path.name}: its {inliers} agreeing points leave its place open by {spread:.0%} of their distance; "
            "take a photo that shows more of the map" + (", or give --fov-deg" * (query.focal_source == "default"))
        )
    agreeing = np.zeros(len(seen.pixels), dtype=bool) if found is None else found.agreeing
    result = Located(
        name=str(photo.path),
        map=map_points.map,
        K=query.lens.K,
        focal_source=query.focal_source,
        size=size,
        matches=seen.count,
        inliers=inliers,
        confidence=confidence,
        retrieved=tuple(
            Retrieved(
                map_points.map.images[index].name,
                likeness,
                int(np.count_nonzero(seen.image == index)),
                int(np.count_nonzero(agreeing & (seen.image == index))),
            )
            for index, likeness in candidates
        ),
        message=no_pose,
    )
    if found is None or no_pose:
        return result
    return replace(
        result,
        K=K,
        focal_source="estimated" if query.focal_source == "default" else query.focal_source,
        world_from_query=poses.inverse(found.pose.cam_from_world),
        covariance=found.pose.covariance,
        reprojection_error_px=found.error_px,
    )


@dataclass(frozen=True)
class Seen:
    """Guesses of what the query shows, H of them: `keypoint` (H,) which of its `count` matched keypoints, at `pixels`
    (H, 2) of its pinhole camera, would be `points_world` (H, 3), which `observations` (H,) map images see, by its match
    with map image `image` (H,). `unit_px`: pixels that count as one."""

    keypoint: np.ndarray
    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    image: np.ndarray
    unit_px: float

    @property
    def count(self) -> int:
        return int(self.keypoint.max(initial=-1)) + 1


@dataclass(frozen=True)
class Found:
    """A pose and the guesses that are `agreeing` (H,) with it, of `keypoints` different ones of the query; their median
    `distance` and root mean square error."""

    pose: RefinedPose
    agreeing: np.ndarray
    keypoints: int
    distance: float
    error_px: float


def _see(query: Query, features: object, map_points: MapPoints, indices: Sequence[int]) -> Seen:
    pixels, points, observations, images, unit_px = [], [], [], [], 1.0
    exact = isinstance(map_points.matcher, FeatureMatcher)
    for index in indices:
        matches = map_points.match(index, query.photo, features)
        unit_px = matches.pixel_size2
        known = map_points.points(index)
        # the matches of one photo's keypoints lie exactly on them; those of dense matchers near each other
        place = known.at(matches.points1, (0.5 if exact else 1.5) * matches.pixel_size1)
        straight = query.lens.straight(matches.points2)
        use = (place >= 0) & np.isfinite(straight).all(-1)
        pixels.append(straight[use])
        points.append(known.points_world[place[use]])
        observations.append(known.observations[place[use]])
        images.append(np.full(int(use.sum()), index))
    if not pixels:
        empty = np.zeros(0, dtype=np.int64)
        return Seen(empty, np.zeros((0, 2)), np.zeros((0, 3)), empty, empty, unit_px)
    at = np.concatenate(pixels)
    keypoint = np.unique(np.rint(2 * at / unit_px).astype(np.int64), axis=0, return_inverse=True)[1].ravel()
    return Seen(keypoint, at, *(np.concatenate(part) for part in (points, observations, images)), unit_px)


def solve(seen: Seen, K: np.ndarray, focal_unknown: bool, config: LocateConfig) -> Found | None:
    """The pose that most guesses agree with, refined on one guess a keypoint: the one that most map images see."""
    threshold_px = config.threshold * seen.unit_px
    starts = []
    for factor in FOCAL_FACTORS if focal_unknown else (1.0,):
        K_start = np.column_stack([K[:, :2] * factor, K[:, 2]]) if focal_unknown else K
        pose = pnp.estimate_absolute_pose(seen.points_world, seen.pixels, K_start, threshold_px, config.seed)
        if pose is not None:
            starts.append((int(pose.inliers.sum()), -pose.reprojection_error_px, K_start, pose))
    if not starts:
        return None
    _, _, K, start = max(starts, key=lambda entry: entry[:2])
    cam_from_world, agreeing, refined = start.cam_from_world, start.inliers, None
    for _ in range(3):
        kept = _one_each(seen, agreeing)
        refined = refine_absolute_pose(
            seen.points_world[kept], seen.pixels[kept], K, cam_from_world, threshold_px, focal_unknown
        )
        if refined is None:
            return None
        K, cam_from_world = refined.K, refined.cam_from_world
        points_cam = poses.transform_points(cam_from_world, seen.points_world)
        errors = np.linalg.norm(project(points_cam, K) - seen.pixels, axis=1)
        before, agreeing = agreeing, (points_cam[:, 2] > 0) & (errors < threshold_px)
        if np.array_equal(before, agreeing):
            break
    distance = float(np.median(np.linalg.norm(points_cam[agreeing], axis=1))) if agreeing.any() else 1.0
    keypoints = len(np.unique(seen.keypoint[agreeing]))
    near = refined.errors_px[refined.errors_px < threshold_px]
    return Found(refined, agreeing, keypoints, distance, float(np.sqrt(np.mean(near**2))))


def _one_each(seen: Seen, agreeing: np.ndarray) -> np.ndarray:
    """Indices of one agreeing guess a keypoint; copies of one measurement would make the pose look surer than it is."""
    index = np.flatnonzero(agreeing)
    order = index[np.argsort(-seen.observations[index], kind="stable")]
    return order[np.unique(seen.keypoint[order], return_index=True)[1]]


def _log10_chance(seen: Seen, inliers: int, size: tuple[int, int], focal_unknown: bool, config: LocateConfig) -> float:
    """As `log10_chance_pnp`, a keypoint with several guesses having as many chances, and every focal length tried."""
    guesses = len(seen.pixels) / seen.count
    threshold_px = config.threshold * seen.unit_px * np.sqrt(guesses)
    tries = np.log10(len(FOCAL_FACTORS)) if focal_unknown else 0.0
    return float(pair_checks.log10_chance_pnp(inliers, seen.count, threshold_px, size) + tries)
