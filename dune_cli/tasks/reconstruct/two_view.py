"""Two photos to a scene without a two-view model: matches, essential matrix, bundle adjustment, stereo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import two_view
from dune_cli.geometry import two_view as pair_checks
from dune_cli.geometry.cameras import backproject, pixel_grid, project
from dune_cli.geometry.epipolar import estimate_relative_pose
from dune_cli.geometry.pose_confidence import confidence_from_evidence, two_view_evidence
from dune_cli.geometry.poses import inverse
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import Photo
from dune_cli.io.safe_read import agreement
from dune_cli.matchers.filtering import LazyThumbnail, extract_image, find_matches, without_static_matches
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.mvs import stereo
from dune_cli.provenance import Run, Source
from dune_cli.sfm.scene import ImagePair, PointMap, Scene, SparsePoints, View

MAX_DENSE_SIDE_PX = 1600  # the dense map's long side, unless asked for otherwise
MIN_INLIERS = 15
MAX_LOG10_FALSE_ALARMS = -4.0
FEW_INLIERS = 40
MIN_AGREEMENT = 0.5  # of the sparse points with a dense depth within 10 % of theirs
MOVE = "take the second photo from another place: a step to the side of about a tenth of the distance"


@dataclass(frozen=True)
class MatchesConfig:
    """`dense_side_px`: long side of the dense map (None: the photo's, at most 1600). `min_confidence` of points in
    [0, 1]. `baseline` between the cameras in metres, where it is known. `seed` of the pose's random sampling."""

    dense_side_px: int | None = None
    min_confidence: float = 0.0
    baseline: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Sparse:
    """The refined pair and its points that are near enough to be placed by their parallax."""

    pose: np.ndarray
    points_cam1: np.ndarray
    pixels1: np.ndarray
    pixels2: np.ndarray
    confidence: np.ndarray
    error_px: float
    parallax_deg: float
    pair: ImagePair


def reconstruct(
    photos: Sequence[Photo],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    matcher: Matcher,
    config: MatchesConfig,
    run: Run,
) -> Scene:
    """The scene of two photos with `intrinsics` (K, source) each.

    Raises JobFailed for a pair that gives no scene: the same photo twice, too few matches or inliers, no parallax.
    """
    first, second = photos
    if first.rgb.shape == second.rgb.shape and np.array_equal(first.rgb, second.rgb):
        raise JobFailed(f"{first.path.name} and {second.path.name} are the same photo twice; {MOVE}")
    with run.stage("match"):
        matches = find_matches(matcher, *(extract_image(matcher, photo.rgb) for photo in photos), config.seed)
    return reconstruct_matched(photos, intrinsics, matches, matcher.source, config, run)


def reconstruct_matched(
    photos: Sequence[Photo],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    matches: Matches,
    source: Source,
    config: MatchesConfig,
    run: Run,
) -> Scene:
    """`reconstruct` of photos whose matches, by `source`, are there."""
    first, second = photos
    (K1, source1), (K2, source2) = intrinsics
    thumbnails = LazyThumbnail.of(first.rgb), LazyThumbnail.of(second.rgb)
    matches = without_static_matches(matches, *thumbnails, config.seed)
    with run.stage("pose"):
        sparse = _sparse(matches, first, second, K1, K2, "default" in (source1, source2), config.seed)
    with run.stage("dense"):
        dense, reason = _dense(first, second, K1, K2, sparse, config)
    notes = [] if dense is not None else [f"no dense points, only the {len(sparse.points_cam1)} matched ones: {reason}"]
    if sparse.pair.inliers < FEW_INLIERS:
        notes.append(f"only {sparse.pair.inliers} matches agree with the pose: look at the result before you trust it")
    if matches.rotated_deg:
        notes.append(
            f"{second.path.name} was matched after it was turned clockwise by {matches.rotated_deg} degrees: one of "
            "both photos lies on its side or its head"
        )
    if "default" in (source1, source2):
        notes.append(
            "the focal length is a guess (55 degrees across the long side), and so are the shapes that follow from it; "
            "give --intrinsics or --fov-deg"
        )
    names = relative_names([first.path, second.path])
    views = (
        View(names[0], first.width, first.height, K1, source1, np.eye(4), dense=dense, orientation=first.orientation),
        View(names[1], second.width, second.height, K2, source2, inverse(sparse.pose), orientation=second.orientation),
    )
    keep = sparse.confidence >= config.min_confidence
    points = SparsePoints.from_full_tracks(
        sparse.points_cam1[keep],
        _colours_at(first.rgb, sparse.pixels1[keep]),
        sparse.confidence[keep].astype(np.float32),
        (sparse.pixels1[keep], sparse.pixels2[keep]),
    )
    scene = Scene(
        method="matches",
        views=views,
        pairs=(sparse.pair,),
        sparse=points,
        scale="arbitrary",
        scale_note="two photos do not tell lengths: the distance between the cameras is 1; give --baseline METRES",
        reprojection_error_px=sparse.error_px,
        parallax_deg=sparse.parallax_deg,
        sources=(source,),
        notes=tuple(notes),
    )
    return scene if config.baseline is None else scene.scaled(config.baseline, "metric", None)


def _sparse(
    matches: Matches, first: Photo, second: Photo, K1: np.ndarray, K2: np.ndarray, focal_unknown: bool, seed: int
) -> _Sparse:
    count = len(matches.points1)
    thresholds = (matches.pixel_size1, matches.pixel_size2)
    names = f"{first.path.name} and {second.path.name}"
    found = None
    if count >= MIN_INLIERS:
        if pair_checks.is_same_view(matches.points1, matches.points2, thresholds):
            raise JobFailed(f"{names} are the same photo twice, or were taken from one place; {MOVE}")
        found = estimate_relative_pose(matches.points1, matches.points2, K1, K2, thresholds, seed)
    inliers = 0 if found is None else int(found.inliers.sum())
    sizes = [(photo.width, photo.height) for photo in (first, second)]
    alarms = pair_checks.log10_nfa_epipolar(inliers, count, thresholds, sizes) + log10(matches.tries)
    if found is None or inliers < MIN_INLIERS or alarms > MAX_LOG10_FALSE_ALARMS:
        if matches.static_matches > inliers:
            raise JobFailed(
                f"{names} agree only in what lies at the same pixels of both ({matches.static_matches} matches: a "
                "caption, a logo, a border or a part of the camera's mount), which tells nothing of how the camera "
                f"moved; of the other {count} matches {inliers or 'too few'} agree on a motion; crop it away, and take "
                "photos that overlap by half or more"
            )
        guess = ", or give --intrinsics or --fov-deg (the focal length is a guess)" if focal_unknown else ""
        raise JobFailed(
            f"{names} do not show enough of the same place: {agreement(count, inliers, 'a motion')}"
            f"{', no more than chance' if inliers else ''}; take photos that overlap by half or more, try another "
            f"--matcher{guess}"
        )
    pixels1, pixels2 = matches.points1[found.inliers], matches.points2[found.inliers]
    moving = pair_checks.unexplained_by_rotation(pixels1, pixels2, K1, K2, thresholds[1], focal_unknown)
    if pair_checks.is_rotation(moving, inliers):
        raise JobFailed(
            f"{names} differ by a rotation alone (no parallax): turning the camera on the spot explains "
            f"{inliers - moving} of {inliers} matches, so depth cannot be seen; {MOVE}"
        )
    refined = two_view.refine(pixels1, pixels2, K1, K2, found.cam2_from_cam1, 1.5 * max(thresholds))
    pose, valid = refined.cam2_from_cam1, refined.valid
    angles = two_view.parallax_angles(refined.points_cam1[valid], pose)
    # a quarter of the depth must be known: parallax against the error of a match, both as angles
    focal_px = float(np.sqrt(K1[0, 0] * K1[1, 1]))
    placed = angles > 4 * max(refined.reprojection_error_px, 0.25 * thresholds[0]) / focal_px
    if np.count_nonzero(placed) < MIN_INLIERS:
        raise JobFailed(f"{names} show no parallax: the camera hardly moved against the distance of the scene; {MOVE}")
    index = np.flatnonzero(valid)[placed]
    again = estimate_relative_pose(matches.points1, matches.points2, K1, K2, thresholds, seed + 1)
    evidence = two_view_evidence(
        matches.points1,
        matches.points2,
        K1,
        K2,
        found,
        [found if again is None else again],
        (sizes[0], sizes[1]),
        thresholds,
        seed,
        matches.tries,
        not focal_unknown,
    )
    return _Sparse(
        pose=pose,
        points_cam1=refined.points_cam1[index],
        pixels1=pixels1[index],
        pixels2=pixels2[index],
        confidence=1 / (1 + (refined.errors_px[index] / max(thresholds)) ** 2),
        error_px=refined.reprojection_error_px,
        parallax_deg=float(np.degrees(np.median(angles[placed]))),
        pair=ImagePair((0, 1), count, int(valid.sum()), confidence_from_evidence(evidence)),
    )


def _dense(
    first: Photo, second: Photo, K1: np.ndarray, K2: np.ndarray, sparse: _Sparse, config: MatchesConfig
) -> tuple[PointMap | None, str]:
    """View 1's dense points, or None and the reason why there are none."""
    side = config.dense_side_px or min(MAX_DENSE_SIDE_PX, max(first.width, first.height))
    (rgb1, map1_from_image), (rgb2, map2_from_image) = (
        stereo.reduce_photo(photo.rgb, side) for photo in (first, second)
    )
    K1_map, K2_map = map1_from_image @ K1, map2_from_image @ K2
    sizes = [(rgb.shape[1], rgb.shape[0]) for rgb in (rgb1, rgb2)]
    rect = stereo.rectify(K1_map, K2_map, sparse.pose, *sizes, sparse.points_cam1)
    if isinstance(rect, str):
        return None, rect
    result = stereo.dense_depth(rgb1, rgb2, K1_map, K2_map, rect)
    agreement = _agreement(result.depth, sparse.points_cam1, K1_map)
    if agreement < MIN_AGREEMENT:
        return None, f"stereo matching agrees with only {agreement:.0%} of the matched points"
    points = backproject(pixel_grid(*result.depth.shape), result.depth, K1_map)
    valid = np.isfinite(result.depth) & (result.confidence >= config.min_confidence)
    return PointMap(points, result.confidence, valid, rgb1, np.linalg.inv(map1_from_image)), ""


def _agreement(depth: np.ndarray, points_cam1: np.ndarray, K: np.ndarray) -> float:
    """The share of sparse points whose pixel has a dense depth within 10 % of theirs."""
    height, width = depth.shape
    x, y = np.rint(project(points_cam1, K)).astype(int).T
    dense = depth[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    known = np.isfinite(dense)
    if not known.any():
        return 0.0
    return float((np.abs(dense[known] / points_cam1[known, 2] - 1) < 0.1).mean())


def _colours_at(rgb: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    x, y = np.rint(pixels).astype(int).T
    return rgb[np.clip(y, 0, rgb.shape[0] - 1), np.clip(x, 0, rgb.shape[1] - 1)]
