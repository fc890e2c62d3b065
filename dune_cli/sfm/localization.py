"""Guesses of what a photo shows of a known scene, and the pose that most of them agree with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import absolute_pose, poses, two_view
from dune_cli.geometry.absolute_pose import RefinedPose, refine_absolute_pose
from dune_cli.geometry.cameras import project
from dune_cli.geometry.pose_confidence import (
    KNOWN_POINTS_DEG,
    NO_EVIDENCE,
    Evidence,
    confidence_from_evidence,
    coverage,
)
from dune_cli.geometry.poses import add_world_offset
from dune_cli.io.photos import Photo
from dune_cli.io.safe_read import agreement
from dune_cli.matchers.filtering import QUARTER_TURNS
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher
from dune_cli.sfm.cameras import Camera
from dune_cli.sfm.landmarks import Landmarks
from dune_cli.sfm.photo_map import PhotoMap
from dune_cli.sfm.relative_pose import MIN_CONFIDENCE, PNP_THRESHOLD_PX
from dune_cli.sfm.retrieval import Candidates

MIN_INLIERS = 12
SECOND_ITERATIONS = 1000  # of the search for a second pose
FOCAL_FACTORS = np.geomspace(0.5, 2.5, 9)  # on a guessed focal length


@dataclass(frozen=True)
class LocalizationConfig:
    """`min_confidence` of a pose that is given out; `threshold` of an inlier in pixels of the matched photo; `seed` of
    the random sampling."""

    min_confidence: float = MIN_CONFIDENCE
    threshold: float = PNP_THRESHOLD_PX
    seed: int = 0


@dataclass(frozen=True)
class Matches2D3D:
    """Guesses of what the query shows, H of them: `keypoint` (H,) which of its `count` matched keypoints, at `pixels`
    (H, 2) of its pinhole camera, would be `points_world` (H, 3), which `observations` (H,) map images see, by its match
    with map image `image` (H,). `unit_px`: pixels that count as one. `shifts` (H, M, 3): where the points go with
    the map's modes (None: it says nothing of its calibration)."""

    keypoint: np.ndarray
    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    image: np.ndarray
    unit_px: float
    shifts: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        points_world: np.ndarray,
        image: np.ndarray,
        unit_px: float,
        observations: np.ndarray | None = None,
        shifts: np.ndarray | None = None,
    ) -> Matches2D3D:
        """Guesses less than half a unit apart are of one keypoint. Without `observations` (H,) all are seen alike."""
        keypoint = np.unique(np.rint(2 * pixels / unit_px).astype(np.int64), axis=0, return_inverse=True)[1].ravel()
        observations = np.ones(len(pixels), dtype=np.int64) if observations is None else observations
        return cls(keypoint, pixels, points_world, observations, image, unit_px, shifts)

    @property
    def count(self) -> int:
        return int(self.keypoint.max(initial=-1)) + 1


@dataclass(frozen=True)
class PnPResult:
    """A pose and the guesses that are `agreeing` (H,) with it, of `keypoints` different ones of the query; their median
    `distance` and root mean square error."""

    pose: RefinedPose
    agreeing: np.ndarray
    keypoints: int
    distance: float
    error_px: float


def solve_pnp(
    seen: Matches2D3D, K: np.ndarray, focal_unknown: bool, config: LocalizationConfig, focal_sd: float = 0.0
) -> PnPResult | None:
    """The pose that most guesses agree with, refined on one guess a keypoint: the one that most map images see.
    `focal_sd`: of K's focal length, a share of it, where it is known."""
    threshold_px = config.threshold * seen.unit_px
    starts = []
    for factor in FOCAL_FACTORS if focal_unknown else (1.0,):
        K_start = np.column_stack([K[:, :2] * factor, K[:, 2]]) if focal_unknown else K
        pose = absolute_pose.estimate_absolute_pose(seen.points_world, seen.pixels, K_start, threshold_px, config.seed)
        if pose is not None:
            starts.append((int(pose.inliers.sum()), -pose.reprojection_error_px, K_start, pose))
    if not starts:
        return None
    _, _, K, start = max(starts, key=lambda entry: entry[:2])
    cam_from_world, agreeing, refined = start.cam_from_world, start.inliers, None
    for _ in range(3):
        kept = _one_each(seen, agreeing)
        shifts = None if seen.shifts is None else seen.shifts[kept]
        refined = refine_absolute_pose(
            seen.points_world[kept], seen.pixels[kept], K, cam_from_world, threshold_px, focal_unknown, shifts, focal_sd
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
    return PnPResult(refined, agreeing, keypoints, distance, float(np.sqrt(np.mean(near**2))))


def _one_each(seen: Matches2D3D, agreeing: np.ndarray) -> np.ndarray:
    """Indices of one agreeing guess a keypoint; copies of one measurement would make the pose look surer than it is."""
    index = np.flatnonzero(agreeing)
    order = index[np.argsort(-seen.observations[index], kind="stable")]
    return order[np.unique(seen.keypoint[order], return_index=True)[1]]


def pnp_evidence(
    seen: Matches2D3D,
    found: PnPResult | None,
    size: tuple[int, int],
    focal_unknown: bool,
    config: LocalizationConfig,
    tries: int = 1,
) -> Evidence:
    """What a pose rests on, for `confidence_of`. `tries`: how many copies of the photo were looked at."""
    chance = pnp_log10_nfa(seen, found, size, focal_unknown, config.threshold) + float(np.log10(tries))
    if found is None or not np.isfinite(chance):
        return NO_EVIDENCE
    # guesses of keypoints that agree are no second opinion
    rest = ~np.isin(seen.keypoint, seen.keypoint[found.agreeing])
    other = None
    if np.count_nonzero(rest) >= MIN_INLIERS:
        threshold_px = config.threshold * seen.unit_px
        other = absolute_pose.estimate_absolute_pose(
            seen.points_world[rest], seen.pixels[rest], found.pose.K, threshold_px, config.seed, SECOND_ITERATIONS
        )
    second = 0 if other is None else len(np.unique(seen.keypoint[rest][other.inliers]))
    covariance = found.pose.covariance
    return Evidence(
        log10_nfa=chance,
        share=found.keypoints / seen.count,
        spread=coverage(seen.pixels[found.agreeing], size),
        second=second / found.keypoints,
        repeatability_deg=float(np.degrees(np.sqrt(np.trace(covariance[:3, :3])))),
        parallax_deg=KNOWN_POINTS_DEG,
    )


def pnp_log10_nfa(
    seen: Matches2D3D, found: PnPResult | None, size: tuple[int, int], focal_unknown: bool, threshold: float
) -> float:
    """As `log10_chance_pnp`, a keypoint with several guesses having as many chances, and every focal length tried.

    Random pixels are taken to lie where the agreeing ones do, not all over the photo: a camera far off sees the whole
    scene in one spot, and agrees with whatever matches lie there.
    """
    if found is None or found.keypoints < MIN_INLIERS:
        return float("inf")
    spread = np.linalg.det(np.cov(seen.pixels[found.agreeing].T))
    area = min(float(size[0] * size[1]), 12 * float(np.sqrt(max(spread, 0.0))))  # of the rectangle with that spread
    threshold_px = threshold * seen.unit_px * np.sqrt(len(seen.pixels) / seen.count)
    if area < 1:
        return float("inf")
    tries = np.log10(len(FOCAL_FACTORS)) if focal_unknown else 0.0
    return float(two_view.log10_nfa_pnp(found.keypoints, seen.count, threshold_px, (area, 1.0)) + tries)


# A photo's pose in a map: matches with the photos of the map, whose points are known, robust PnP, covariance.


EXIF_SD = 0.05  # of a focal length: EXIF has whole millimetres, and knows of no crop
MAX_POSITION_STD = 0.1  # of the median distance to the points: beyond it a place is hardly one


@dataclass(frozen=True)
class Query:
    """A photo to be located, and its camera; `focal_source` given | exif | default (then the focal length is looked
    for, too)."""

    photo: Photo
    camera: Camera
    focal_source: str


@dataclass(frozen=True)
class RetrievedImage:
    """A map image that was matched with the query: its `likeness` (None: all images were taken), the `matches` at
    known points, and how many of these agree with the pose."""

    name: str
    similarity: float | None
    matches: int
    inliers: int


@dataclass(frozen=True)
class LocalizationResult:
    """Where a query was taken, or why that is not known (`message`; the pose None then).

    `covariance` (6, 6) as in `RefinedPose`: rotation vector about the world's axes (radians), then the camera's centre
    in the map's unit. It contains the map's calibration where `has_map_calibration`, and an EXIF focal length's error.
    `from_calibration` (6, 6) is that part of it. `matches`: keypoints of the query that match known points, `inliers`
    of them agree.
    `rotated_deg`: by how much the query had to be turned clockwise to be found. `fixed`: matches that were left out,
    because they lie at the same pixels of a map photo.
    """

    name: str
    map: PhotoMap
    K: np.ndarray | None
    focal_source: str
    size: tuple[int, int] | None
    world_from_query: np.ndarray | None = None
    covariance: np.ndarray | None = None
    from_calibration: np.ndarray | None = None
    matches: int = 0
    inliers: int = 0
    confidence: float = 0.0
    reprojection_error_px: float | None = None
    retrieved: tuple[RetrievedImage, ...] = ()
    message: str = ""
    rotated_deg: int = 0
    static_matches: int = 0

    @property
    def success(self) -> bool:
        return self.world_from_query is not None

    @property
    def has_map_calibration(self) -> bool:
        """Whether the covariance contains how sure the map's cameras are."""
        return self.success and self.map.knows_calibration

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


def failed_localization(name: str, photo_map: PhotoMap, reason: str) -> LocalizationResult:
    """A query that could not even be read."""
    return LocalizationResult(name, photo_map, None, "", None, message=reason)


def localize(
    query: Query,
    map_points: Landmarks,
    candidates: Candidates,
    config: LocalizationConfig,
    candidates_of: Callable[[np.ndarray], Candidates] | None = None,
) -> LocalizationResult:
    """The query's pose in the map, from its matches with the `candidates`.

    Where there is none, and the matcher takes photos upright only, from those of the query turned by quarters, the turn
    with which most of them agree; `candidates_of` gives the candidates of a turned photo, if they are not the same.
    """
    seen, fixed = _match_landmarks(query, map_points, [index for index, _ in candidates])
    upright = localize_from_matches(seen, query, map_points.map, candidates, config, fixed=fixed)
    if upright.success or map_points.matcher.rotation_invariant or not isinstance(map_points.matcher, CacheableMatcher):
        return upright
    best = upright
    for turns in range(1, QUARTER_TURNS):
        if candidates_of is not None:
            candidates = candidates_of(np.ascontiguousarray(np.rot90(query.photo.rgb, -turns)))
        seen, fixed = _match_landmarks(query, map_points, [index for index, _ in candidates], turns)
        found = localize_from_matches(seen, query, map_points.map, candidates, config, 90 * turns, fixed)
        if found.success and (not best.success or found.inliers > best.inliers):
            best = found
    return best


def localize_from_matches(
    seen: Matches2D3D,
    query: Query,
    photo_map: PhotoMap,
    candidates: Candidates,
    config: LocalizationConfig,
    rotated_deg: int = 0,
    fixed: int = 0,
) -> LocalizationResult:
    """The query's pose by what it shows of the map, after it was turned clockwise by `rotated_deg`; `fixed`: matches
    that were left out, because they lie at the same pixels of the map's photo."""
    focal_unknown = query.focal_source == "default"
    size = (query.photo.width, query.photo.height)
    focal_sd = EXIF_SD if query.focal_source == "exif" else 0.0
    found = solve_pnp(seen, query.camera.K, focal_unknown, config, focal_sd) if seen.count else None
    inliers = 0 if found is None else found.keypoints
    evidence = pnp_evidence(seen, found, size, focal_unknown, config, QUARTER_TURNS if rotated_deg else 1)
    confidence = confidence_from_evidence(evidence)
    agreeing = np.zeros(len(seen.pixels), dtype=bool) if found is None else found.agreeing
    message = _no_pose(seen, found, confidence, query, photo_map, config, fixed)
    result = LocalizationResult(
        name=str(query.photo.path),
        map=photo_map,
        K=query.camera.K,
        focal_source=query.focal_source,
        size=size,
        matches=seen.count,
        inliers=inliers,
        confidence=confidence,
        rotated_deg=rotated_deg,
        static_matches=fixed,
        retrieved=tuple(
            RetrievedImage(
                photo_map.images[index].name,
                likeness,
                int(np.count_nonzero(seen.image == index)),
                int(np.count_nonzero(agreeing & (seen.image == index))),
            )
            for index, likeness in candidates
        ),
        message=message,
    )
    if found is None or message:
        return result
    return replace(
        result,
        K=found.pose.K,
        focal_source="estimated" if focal_unknown else query.focal_source,
        world_from_query=add_world_offset(poses.inverse(found.pose.cam_from_world), photo_map.world_offset),
        covariance=found.pose.covariance,
        from_calibration=found.pose.from_calibration,
        reprojection_error_px=found.error_px,
    )


def _no_pose(
    seen: Matches2D3D,
    found: PnPResult | None,
    confidence: float,
    query: Query,
    photo_map: PhotoMap,
    config: LocalizationConfig,
    fixed: int,
) -> str:
    """Why no pose is given out; empty where one is."""
    name = query.photo.path.name
    if found is None or confidence < config.min_confidence:
        inliers = 0 if found is None else found.keypoints
        agreed = agreement(seen.count, inliers, "a pose")
        if fixed > inliers:
            return (
                f"{name} agrees with {photo_map.folder} only in what lies at the same pixels of both ({fixed} "
                "matches: a caption, a logo, a border or a part of the mount), which tells nothing of where it "
                f"was taken; of the others: {agreed}; take a photo of what the map shows"
            )
        return (
            f"{name} does not show enough of {photo_map.folder}: {agreed} (confidence "
            f"{confidence:.2f}); take a photo of what the map shows, or try another --matcher"
        )
    # a map that is not sure of its lenses has places all the same: only what the matches leave open counts
    own = np.diag(found.pose.covariance - found.pose.from_calibration)[3:]
    spread = float(np.sqrt(max(own.sum(), 0.0))) / found.distance
    if spread <= MAX_POSITION_STD:
        return ""
    cure = ", or give --fov-deg" if query.focal_source == "default" else ""
    return (
        f"{name}: its {found.keypoints} agreeing points leave its place open by {spread:.0%} of their distance; take a "
        f"photo that shows more of the map{cure}"
    )


def _match_landmarks(
    query: Query, map_points: Landmarks, indices: Sequence[int], turns: int = 0
) -> tuple[Matches2D3D, int]:
    """What the query, turned clockwise by quarters, shows of map images; and how many matches were left out, because
    they lie at the same pixels of both photos."""
    features = map_points.look(query.photo, turns)
    fixed = 0
    pixels, points, observations, images, shifts, unit_px = [], [], [], [], [], 1.0
    exact = isinstance(map_points.matcher, FeatureMatcher)
    for index in indices:
        matches = map_points.match(index, query.photo, features)
        unit_px, fixed = matches.pixel_size2, fixed + matches.static_matches
        known = map_points.points(index)
        # the matches of one photo's keypoints lie exactly on them; those of dense matchers near each other
        place = known.at(matches.points1, (0.5 if exact else 1.5) * matches.pixel_size1)
        straight = query.camera.undistort(matches.points2)
        use = (place >= 0) & np.isfinite(straight).all(-1)
        pixels.append(straight[use])
        points.append(known.points_world[place[use]])
        observations.append(known.observations[place[use]])
        images.append(np.full(int(use.sum()), index))
        shifts.append(known.shifts[place[use]])
    if not pixels:
        return Matches2D3D.of(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, dtype=np.int64), unit_px), fixed
    parts = (np.concatenate(part) for part in (pixels, points, images))
    moved = np.concatenate(shifts) if map_points.map.knows_calibration else None
    return Matches2D3D.of(*parts, unit_px, np.concatenate(observations), moved), fixed
