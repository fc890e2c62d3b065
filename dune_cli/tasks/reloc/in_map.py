"""A photo's pose in a map: matches with the photos of the map, whose points are known, robust PnP, covariance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.pose_confidence import confidence_of
from dune_cli.geometry.world_offset import moved
from dune_cli.io.photos import Photo
from dune_cli.io.texts import agreement
from dune_cli.matchers.base import FeatureMatcher, SplitMatcher
from dune_cli.matchers.evidence import TURNS
from dune_cli.tasks.reloc.choose import Candidates
from dune_cli.tasks.reloc.guesses import Found, LocateConfig, Seen, evidence_of, solve
from dune_cli.tasks.reloc.lens import Lens
from dune_cli.tasks.reloc.map_files import PhotoMap
from dune_cli.tasks.reloc.map_points import MapPoints

EXIF_SD = 0.05  # of a focal length: EXIF has whole millimetres, and knows of no crop
MAX_POSITION_STD = 0.1  # of the median distance to the points: beyond it a place is hardly one


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
    in the map's unit. It contains the map's calibration where `has_map_calibration`, and an EXIF focal length's error.
    `from_calibration` (6, 6) is that part of it. `matches`: keypoints of the query that match known points, `inliers`
    of them agree.
    `turned_deg`: by how much the query had to be turned clockwise to be found. `fixed`: matches that were left out,
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
    retrieved: tuple[Retrieved, ...] = ()
    message: str = ""
    turned_deg: int = 0
    fixed: int = 0

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


def unread(name: str, photo_map: PhotoMap, reason: str) -> Located:
    """A query that could not even be read."""
    return Located(name, photo_map, None, "", None, message=reason)


def locate(
    query: Query,
    map_points: MapPoints,
    candidates: Candidates,
    config: LocateConfig,
    candidates_of: Callable[[np.ndarray], Candidates] | None = None,
) -> Located:
    """The query's pose in the map, from its matches with the `candidates`.

    Where there is none, and the matcher takes photos upright only, from those of the query turned by quarters, the turn
    with which most of them agree; `candidates_of` gives the candidates of a turned photo, if they are not the same.
    """
    seen, fixed = _see(query, map_points, [index for index, _ in candidates])
    upright = located_by(seen, query, map_points.map, candidates, config, fixed=fixed)
    if upright.success or map_points.matcher.turn_invariant or not isinstance(map_points.matcher, SplitMatcher):
        return upright
    best = upright
    for turns in range(1, TURNS):
        if candidates_of is not None:
            candidates = candidates_of(np.ascontiguousarray(np.rot90(query.photo.rgb, -turns)))
        seen, fixed = _see(query, map_points, [index for index, _ in candidates], turns)
        found = located_by(seen, query, map_points.map, candidates, config, 90 * turns, fixed)
        if found.success and (not best.success or found.inliers > best.inliers):
            best = found
    return best


def located_by(
    seen: Seen,
    query: Query,
    photo_map: PhotoMap,
    candidates: Candidates,
    config: LocateConfig,
    turned_deg: int = 0,
    fixed: int = 0,
) -> Located:
    """The query's pose by what it shows of the map, after it was turned clockwise by `turned_deg`; `fixed`: matches
    that were left out, because they lie at the same pixels of the map's photo."""
    focal_unknown = query.focal_source == "default"
    size = (query.photo.width, query.photo.height)
    focal_sd = EXIF_SD if query.focal_source == "exif" else 0.0
    found = solve(seen, query.lens.K, focal_unknown, config, focal_sd) if seen.count else None
    inliers = 0 if found is None else found.keypoints
    evidence = evidence_of(seen, found, size, focal_unknown, config, TURNS if turned_deg else 1)
    confidence = confidence_of(evidence)
    agreeing = np.zeros(len(seen.pixels), dtype=bool) if found is None else found.agreeing
    message = _no_pose(seen, found, confidence, query, photo_map, config, fixed)
    result = Located(
        name=str(query.photo.path),
        map=photo_map,
        K=query.lens.K,
        focal_source=query.focal_source,
        size=size,
        matches=seen.count,
        inliers=inliers,
        confidence=confidence,
        turned_deg=turned_deg,
        fixed=fixed,
        retrieved=tuple(
            Retrieved(
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
        world_from_query=moved(poses.inverse(found.pose.cam_from_world), photo_map.world_offset),
        covariance=found.pose.covariance,
        from_calibration=found.pose.from_calibration,
        reprojection_error_px=found.error_px,
    )


def _no_pose(
    seen: Seen,
    found: Found | None,
    confidence: float,
    query: Query,
    photo_map: PhotoMap,
    config: LocateConfig,
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


def _see(query: Query, map_points: MapPoints, indices: Sequence[int], turns: int = 0) -> tuple[Seen, int]:
    """What the query, turned clockwise by quarters, shows of map images; and how many matches were left out, because
    they lie at the same pixels of both photos."""
    features = map_points.look(query.photo, turns)
    fixed = 0
    pixels, points, observations, images, shifts, unit_px = [], [], [], [], [], 1.0
    exact = isinstance(map_points.matcher, FeatureMatcher)
    for index in indices:
        matches = map_points.match(index, query.photo, features)
        unit_px, fixed = matches.pixel_size2, fixed + matches.fixed
        known = map_points.points(index)
        # the matches of one photo's keypoints lie exactly on them; those of dense matchers near each other
        place = known.at(matches.points1, (0.5 if exact else 1.5) * matches.pixel_size1)
        straight = query.lens.straight(matches.points2)
        use = (place >= 0) & np.isfinite(straight).all(-1)
        pixels.append(straight[use])
        points.append(known.points_world[place[use]])
        observations.append(known.observations[place[use]])
        images.append(np.full(int(use.sum()), index))
        shifts.append(known.shifts[place[use]])
    if not pixels:
        return Seen.of(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, dtype=np.int64), unit_px), fixed
    parts = (np.concatenate(part) for part in (pixels, points, images))
    moved = np.concatenate(shifts) if map_points.map.knows_calibration else None
    return Seen.of(*parts, unit_px, np.concatenate(observations), moved), fixed
