"""A photo's pose in a map: matches with the photos of the map, whose points are known, robust PnP, covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.geometry import poses
from dune_cli.geometry.world_offset import moved
from dune_cli.io.photos import Photo
from dune_cli.io.texts import agreement
from dune_cli.matchers.base import FeatureMatcher
from dune_cli.tasks.reloc.choose import Candidates
from dune_cli.tasks.reloc.guesses import Found, LocateConfig, Seen, log10_chance, solve
from dune_cli.tasks.reloc.lens import Lens
from dune_cli.tasks.reloc.map_files import PhotoMap
from dune_cli.tasks.reloc.map_points import MapPoints
from dune_cli.tasks.reloc.solve import confidence_of

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


def unread(name: str, photo_map: PhotoMap, reason: str) -> Located:
    """A query that could not even be read."""
    return Located(name, photo_map, None, "", None, message=reason)


def locate(query: Query, map_points: MapPoints, candidates: Candidates, config: LocateConfig) -> Located:
    """The query's pose in the map, from its matches with the `candidates`."""
    seen = _see(query, map_points, [index for index, _ in candidates])
    return located_by(seen, query, map_points.map, candidates, config)


def located_by(seen: Seen, query: Query, photo_map: PhotoMap, candidates: Candidates, config: LocateConfig) -> Located:
    """The query's pose by what it shows of the map."""
    focal_unknown = query.focal_source == "default"
    size = (query.photo.width, query.photo.height)
    found = solve(seen, query.lens.K, focal_unknown, config) if seen.count else None
    inliers = 0 if found is None else found.keypoints
    confidence = confidence_of(log10_chance(seen, found, size, focal_unknown, config.threshold))
    agreeing = np.zeros(len(seen.pixels), dtype=bool) if found is None else found.agreeing
    message = _no_pose(seen, found, confidence, query, photo_map, config)
    result = Located(
        name=str(query.photo.path),
        map=photo_map,
        K=query.lens.K,
        focal_source=query.focal_source,
        size=size,
        matches=seen.count,
        inliers=inliers,
        confidence=confidence,
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
        reprojection_error_px=found.error_px,
    )


def _no_pose(
    seen: Seen, found: Found | None, confidence: float, query: Query, photo_map: PhotoMap, config: LocateConfig
) -> str:
    """Why no pose is given out; empty where one is."""
    name = query.photo.path.name
    if found is None or confidence < config.min_confidence:
        agreed = agreement(seen.count, 0 if found is None else found.keypoints, "a pose")
        return (
            f"{name} does not show enough of {photo_map.folder}: {agreed} (confidence "
            f"{confidence:.2f}); take a photo of what the map shows, or try another --matcher"
        )
    spread = float(np.linalg.norm(found.pose.position_std)) / found.distance
    if spread <= MAX_POSITION_STD:
        return ""
    cure = ", or give --fov-deg" if query.focal_source == "default" else ""
    return (
        f"{name}: its {found.keypoints} agreeing points leave its place open by {spread:.0%} of their distance; take a "
        f"photo that shows more of the map{cure}"
    )


def _see(query: Query, map_points: MapPoints, indices: Sequence[int]) -> Seen:
    features = map_points.look(query.photo)
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
        return Seen.of(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, dtype=np.int64), unit_px)
    parts = (np.concatenate(part) for part in (pixels, points, images))
    return Seen.of(*parts, unit_px, np.concatenate(observations))
