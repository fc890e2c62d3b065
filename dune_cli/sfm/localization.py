"""Localization: the pose of a query photo in a map, by matches with map photos whose points are known, and PnP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.absolute_pose import Matches2D3D, PnPResult, pnp_evidence, solve_pnp
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.pose_confidence import confidence_from_evidence
from dune_cli.io.photos import Photo
from dune_cli.matchers.filtering import QUARTER_TURNS
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher
from dune_cli.sfm.landmarks import Landmarks
from dune_cli.sfm.matching import match_counts_text
from dune_cli.sfm.photo_map import PhotoMap
from dune_cli.sfm.relative_pose import MIN_CONFIDENCE, PNP_THRESHOLD_PX
from dune_cli.sfm.retrieval import Candidates

EXIF_SD = 0.05  # of a focal length: EXIF has whole millimetres, and nothing about cropping
SCOUTS = 3  # retrieved photos that a rotated query is matched with first
SCOUT_INLIERS = 8  # with them, for it to be matched with the others: a pose takes 12 with all
MAX_POSITION_STD = 0.1  # of the median distance to the points: beyond it the position counts as unknown


@dataclass(frozen=True)
class LocalizationConfig:
    """`min_confidence` of a pose that is returned; `threshold` of an inlier in matched pixels; `seed` of the random
    sampling."""

    min_confidence: float = MIN_CONFIDENCE
    threshold: float = PNP_THRESHOLD_PX
    seed: int = 0


@dataclass(frozen=True)
class Query:
    """A photo to be localized, and its camera. `focal_source` given | map | exif | default; with default the focal
    length is estimated."""

    photo: Photo
    camera: Camera
    focal_source: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photo.width, self.photo.height


@dataclass(frozen=True)
class RetrievedImage:
    """A map image that was matched with the query: its `similarity` (None: all images were taken), the `matches` with
    known points, and the `inliers` among them."""

    name: str
    similarity: float | None
    matches: int
    inliers: int


@dataclass(frozen=True)
class LocalizationResult:
    """The pose of a query, or why there is none (`message`; `world_from_query` None then).

    `covariance` (6, 6) as in `RefinedPose`: rotation vector about the world's axes (radians), then the camera's centre
    in the map's unit. It includes the uncertainty of the map's calibration where `has_map_calibration`, and that of an
    EXIF focal length; `from_calibration` (6, 6) is this part of it. `matches`: keypoints of the query that match known
    points, with the `inliers` among them. `rotated_deg`: the clockwise rotation after which the query was matched.
    `static_matches`: how many were left out because they lie at the same pixels of a map photo. `camera`: the query's,
    whose pinhole part is K.
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
    camera: Camera | None = None

    @property
    def success(self) -> bool:
        return self.world_from_query is not None

    @property
    def has_map_calibration(self) -> bool:
        """Whether the covariance includes the uncertainty of the map's cameras."""
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
    """The result of a query that could not be read."""
    return LocalizationResult(name, photo_map, None, "", None, message=reason)


def localize(
    query: Query,
    landmarks: Landmarks,
    candidates: Candidates,
    config: LocalizationConfig,
    retrieve: Callable[[np.ndarray], Candidates] | None = None,
    upright_only: bool = False,
) -> LocalizationResult:
    """The query's pose in the map, from its matches with the `candidates`.

    Where there is none, and the matcher takes upright photos only, the query is rotated by quarter turns, unless
    `upright_only`, and the turn with the most inliers is returned. `retrieve` gives the candidates of a rotated photo,
    if they are not the same; the SCOUTS most similar ones then decide whether it is matched with all of them.
    """
    upright = _localize_rotated(query, landmarks, candidates, config, 0)
    matcher = landmarks.matcher
    known = upright.success or upright_only or matcher.rotation_invariant
    if known or not isinstance(matcher, CacheableMatcher):
        return upright
    best = upright
    for turns in range(1, QUARTER_TURNS):
        if retrieve is not None:
            candidates = retrieve(np.ascontiguousarray(np.rot90(query.photo.rgb, -turns)))
        ranked = all(similarity is not None for _, similarity in candidates)
        if ranked and len(candidates) > SCOUTS:
            scouted = _localize_rotated(query, landmarks, candidates[:SCOUTS], config, turns)
            if scouted.inliers < SCOUT_INLIERS:
                continue
        rotated = _localize_rotated(query, landmarks, candidates, config, turns)
        if rotated.success and (not best.success or rotated.inliers > best.inliers):
            best = rotated
    return best


def _localize_rotated(
    query: Query, landmarks: Landmarks, candidates: Candidates, config: LocalizationConfig, quarter_turns: int
) -> LocalizationResult:
    """The pose of a query that is rotated clockwise by quarter turns for its matches with the candidates."""
    matches, static = match_landmarks(query, landmarks, [index for index, _ in candidates], quarter_turns)
    return localize_from_matches(matches, query, landmarks.map, candidates, config, 90 * quarter_turns, static)


def match_landmarks(
    query: Query, landmarks: Landmarks, indices: Sequence[int], quarter_turns: int = 0
) -> tuple[Matches2D3D, int]:
    """Matches of the query, rotated clockwise by quarter turns, with the points of map images; and how many static
    matches were left out."""
    static, pixel_size = 0, 1.0
    pixels, points, observations, images, shifts = [], [], [], [], []
    # keypoints match exactly; the matches of dense matchers are near each other
    tolerance = 0.5 if isinstance(landmarks.matcher, FeatureMatcher) else 1.5
    for index in indices:
        matches = landmarks.match(index, query.photo, quarter_turns)
        pixel_size, static = matches.pixel_size2, static + matches.static_matches
        known = landmarks.points(index)
        nearest = known.nearest(matches.points1, tolerance * matches.pixel_size1)
        use = nearest >= 0
        pixels.append(matches.points2[use])
        points.append(known.points_world[nearest[use]])
        observations.append(known.observations[nearest[use]])
        images.append(np.full(int(use.sum()), index))
        shifts.append(known.shifts[nearest[use]])
    if not pixels:
        return Matches2D3D.of(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, dtype=np.int64), pixel_size), static
    undistorted = query.camera.undistort(np.concatenate(pixels))
    use = np.isfinite(undistorted).all(-1)
    known_points, seen_by, image = (np.concatenate(part)[use] for part in (points, observations, images))
    all_shifts = np.concatenate(shifts)[use] if landmarks.map.knows_calibration else None
    return Matches2D3D.of(undistorted[use], known_points, image, pixel_size, seen_by, all_shifts), static


def localize_from_matches(
    matches: Matches2D3D,
    query: Query,
    photo_map: PhotoMap,
    candidates: Candidates,
    config: LocalizationConfig,
    rotated_deg: int = 0,
    static_matches: int = 0,
) -> LocalizationResult:
    """The query's pose from its matches with the map, found after a clockwise rotation by `rotated_deg`, without
    `static_matches`."""
    focal_unknown = query.focal_source == "default"
    focal_sd = EXIF_SD if query.focal_source == "exif" else 0.0
    pnp = None
    if matches.count:
        pnp = solve_pnp(matches, query.camera.K, config.threshold, focal_unknown, focal_sd, config.seed)
    tries = QUARTER_TURNS if rotated_deg else 1
    evidence = pnp_evidence(matches, pnp, query.size, config.threshold, focal_unknown, config.seed, tries)
    confidence = confidence_from_evidence(evidence)
    inliers = np.zeros(len(matches.pixels), dtype=bool) if pnp is None else pnp.inliers
    message = _reason_without_pose(matches, pnp, confidence, query, photo_map, config, static_matches)
    result = LocalizationResult(
        name=str(query.photo.path),
        map=photo_map,
        K=query.camera.K,
        focal_source=query.focal_source,
        size=query.size,
        matches=matches.count,
        inliers=0 if pnp is None else pnp.keypoints,
        confidence=confidence,
        rotated_deg=rotated_deg,
        static_matches=static_matches,
        retrieved=tuple(
            RetrievedImage(
                photo_map.images[index].name,
                similarity,
                int(np.count_nonzero(matches.image == index)),
                int(np.count_nonzero(inliers & (matches.image == index))),
            )
            for index, similarity in candidates
        ),
        message=message,
        camera=query.camera,
    )
    if pnp is None or message:
        return result
    return replace(
        result,
        K=pnp.pose.K,
        camera=query.camera.with_focal(float(pnp.pose.K[0, 0] / query.camera.K[0, 0])),
        focal_source="estimated" if focal_unknown else query.focal_source,
        world_from_query=poses.add_world_offset(poses.inverse(pnp.pose.cam_from_world), photo_map.world_offset),
        covariance=pnp.pose.covariance,
        from_calibration=pnp.pose.from_calibration,
        reprojection_error_px=pnp.error_px,
    )


def _reason_without_pose(
    matches: Matches2D3D,
    pnp: PnPResult | None,
    confidence: float,
    query: Query,
    photo_map: PhotoMap,
    config: LocalizationConfig,
    static_matches: int,
) -> str:
    """Why no pose is returned; empty where one is."""
    name = query.photo.path.name
    if pnp is None or confidence < config.min_confidence:
        inliers = 0 if pnp is None else pnp.keypoints
        agreed = match_counts_text(matches.count, inliers, "a pose")
        if static_matches > inliers:
            return (
                f"{name} agrees with {photo_map.folder} only in matches at the same pixels of both ({static_matches}: "
                "a caption, a logo, a border or a part of the mount), which are no evidence for a pose; of the others: "
                f"{agreed}; take a photo of what the map shows"
            )
        return (
            f"{name} does not show enough of {photo_map.folder}: {agreed} (confidence "
            f"{confidence:.2f}); take a photo of what the map shows, or try another --matcher"
        )
    # without the uncertainty of calibration: a position in a map of uncertain cameras is a position all the same
    variances = np.diag(pnp.pose.covariance - pnp.pose.from_calibration)[3:]
    spread = float(np.sqrt(max(variances.sum(), 0.0))) / pnp.distance
    if spread <= MAX_POSITION_STD:
        return ""
    cure = ", or give --fov-deg" if query.focal_source == "default" else ""
    return (
        f"{name}: its {pnp.keypoints} inliers determine its position only to {spread:.0%} of their distance; take a "
        f"photo that shows more of the map{cure}"
    )
