"""The scene of two photos by matches: essential matrix, bundle adjustment, and dense stereo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import two_view
from dune_cli.geometry.cameras import backproject, pixel_grid, project
from dune_cli.geometry.epipolar import estimate_relative_pose
from dune_cli.geometry.pose_confidence import MatchedPixels, confidence_from_evidence, two_view_evidence
from dune_cli.geometry.poses import inverse
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import Photo
from dune_cli.io.undistortion import undistort_image
from dune_cli.matchers.filtering import LazyThumbnail, extract_images, find_matches, without_static_matches
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.mvs import stereo
from dune_cli.mvs.depth_fill import fill_map
from dune_cli.provenance import Run, Source
from dune_cli.sfm.cameras import undistort_matches
from dune_cli.sfm.features import colors_at
from dune_cli.sfm.matching import match_counts_text
from dune_cli.sfm.scene import ImagePair, PointMap, Scene, SparsePoints, View
from dune_cli.tasks.reconstruct.config import MatchesConfig

MAX_STEREO_SIDE_PX = 1600  # unless another size is asked for
MIN_INLIERS = 15
MAX_LOG10_NFA = -4.0
FEW_INLIERS = 40
MIN_STEREO_AGREEMENT = 0.5  # of the sparse points that have a dense depth
LITTLE_PARALLAX_DEG = 0.5  # a step to the side of a hundredth of the distance
MOVE = "take the second photo from another place: a step to the side of about a tenth of the distance"


@dataclass(frozen=True)
class _TwoViewPoints:
    """The refined pose and the triangulated points with enough parallax."""

    cam2_from_cam1: np.ndarray
    points_cam1: np.ndarray
    pixels1: np.ndarray
    pixels2: np.ndarray
    confidence: np.ndarray
    error_px: float
    parallax_deg: float
    pair: ImagePair


def reconstruct_pair(
    photos: Sequence[Photo], cameras: Sequence[PhotoCamera], matcher: Matcher, config: MatchesConfig, run: Run
) -> Scene:
    """The scene of two photos with their cameras.

    Raises JobFailed for a pair that gives no scene: the same photo twice, too few matches or inliers, no parallax.
    """
    first, second = photos
    if first.rgb.shape == second.rgb.shape and np.array_equal(first.rgb, second.rgb):
        raise JobFailed(f"{first.path.name} and {second.path.name} are the same photo twice; {MOVE}")
    with run.stage("match"):
        matches = find_matches(matcher, *extract_images(matcher, [photo.rgb for photo in photos]), config.seed)
    masked = None
    if config.masks is not None:
        matches, masked = config.masks.matches_without_masked(matches, [first.path, second.path])
    return reconstruct_matched(photos, cameras, matches, matcher.source, config, run).with_masks(masked)


def reconstruct_matched(
    photos: Sequence[Photo],
    cameras: Sequence[PhotoCamera],
    matches: Matches,
    source: Source,
    config: MatchesConfig,
    run: Run,
) -> Scene:
    """As `reconstruct_pair`, with `matches` that the matcher `source` has found."""
    first, second = photos
    (K1, K2), (lens1, lens2) = (one.K for one in cameras), (one.camera for one in cameras)
    focal_unknown = "default" in (cameras[0].source, cameras[1].source)
    matches = without_static_matches(matches, LazyThumbnail.of(first.rgb), LazyThumbnail.of(second.rgb), config.seed)
    matches, _ = undistort_matches(matches, lens1, lens2)
    with run.stage("pose"):
        sparse = _triangulate(matches, first, second, K1, K2, focal_unknown, config.seed)
    with run.stage("dense"):
        straight = undistort_image(first.rgb, lens1), undistort_image(second.rgb, lens2)
        dense, reason = _dense_map(*straight, K1, K2, sparse, config)
        if dense is not None and config.fill is not None:
            dense = fill_map(dense, dense.intrinsics(K1), np.eye(4), sparse.points_cam1, config.fill)
            dense = dense.without_filled(dense.confidence < config.min_confidence)
        if dense is not None and config.masks is not None:
            dense = config.masks.on_map(dense, first.path, lens1)
    notes = [] if dense is not None else [f"no dense points, only the {len(sparse.points_cam1)} matched ones: {reason}"]
    if sparse.pair.inliers < FEW_INLIERS:
        notes.append(f"only {sparse.pair.inliers} matches agree with the pose: check the result before you use it")
    if sparse.parallax_deg < LITTLE_PARALLAX_DEG:
        notes.append(
            f"the photos were taken from nearly one place (parallax {sparse.parallax_deg:.2f} deg), so distances are "
            f"inexact and much has none; {MOVE}"
        )
    if matches.rotated_deg:
        notes.append(
            f"{second.path.name} was rotated clockwise by {matches.rotated_deg} degrees for matching: one of the "
            "photos is sideways or upside down"
        )
    if focal_unknown:
        notes.append(
            "the focal length is a guess (55 degrees across the long side), and shapes are distorted where it is "
            "wrong; give --intrinsics or --fov-deg"
        )
    names = relative_names([first.path, second.path])
    pose2 = inverse(sparse.cam2_from_cam1)
    views = (
        _view(names[0], first, cameras[0], np.eye(4), dense),
        _view(names[1], second, cameras[1], pose2, None),
    )
    pixels1, pixels2 = lens1.distort(sparse.pixels1), lens2.distort(sparse.pixels2)
    keep = sparse.confidence >= config.min_confidence
    points = SparsePoints.from_full_tracks(
        sparse.points_cam1[keep],
        colors_at(first.rgb, pixels1[keep]),
        sparse.confidence[keep].astype(np.float32),
        (pixels1[keep], pixels2[keep]),
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
        sources=(source, *(() if config.fill is None or dense is None else config.fill.sources)),
        notes=tuple(notes),
    )
    return scene if config.baseline is None else scene.scaled(config.baseline, "metric", None)


def _view(name: str, photo: Photo, own: PhotoCamera, world_from_cam: np.ndarray, dense: PointMap | None) -> View:
    return View(
        name,
        photo.width,
        photo.height,
        own.K,
        own.source,
        world_from_cam,
        dense=dense,
        lens=None if own.camera.model == "PINHOLE" else own.camera,
        orientation=photo.orientation,
    )


def _triangulate(
    matches: Matches, first: Photo, second: Photo, K1: np.ndarray, K2: np.ndarray, focal_unknown: bool, seed: int
) -> _TwoViewPoints:
    count = len(matches.points1)
    thresholds_px = (matches.pixel_size1, matches.pixel_size2)
    sizes = (first.width, first.height), (second.width, second.height)
    names = f"{first.path.name} and {second.path.name}"
    pose = None
    if count >= MIN_INLIERS:
        if two_view.is_same_view(matches.points1, matches.points2, thresholds_px):
            raise JobFailed(f"{names} are the same photo twice, or were taken from one place; {MOVE}")
        pose = estimate_relative_pose(matches.points1, matches.points2, K1, K2, thresholds_px, seed)
    inliers = 0 if pose is None else int(pose.inliers.sum())
    log10_nfa = two_view.log10_nfa_epipolar(inliers, count, thresholds_px, sizes) + log10(matches.tries)
    if pose is None or inliers < MIN_INLIERS or log10_nfa > MAX_LOG10_NFA:
        if matches.static_matches > inliers:
            raise JobFailed(
                f"{names} agree only in what lies at the same pixels of both ({matches.static_matches} matches: a "
                "caption, a logo, a border or a part of the camera's mount), which tells nothing of how the camera "
                f"moved; of the other {count} matches {inliers or 'too few'} agree on a motion; crop it away, and take "
                "photos that overlap by half or more"
            )
        guess = ", or give --intrinsics or --fov-deg (the focal length is a guess)" if focal_unknown else ""
        raise JobFailed(
            f"{names} do not show enough of the same place: {match_counts_text(count, inliers, 'a motion')}"
            f"{', no more than chance' if inliers else ''}; take photos that overlap by half or more, try another "
            f"--matcher{guess}"
        )
    pixels1, pixels2 = matches.points1[pose.inliers], matches.points2[pose.inliers]
    unexplained = two_view.unexplained_by_rotation(pixels1, pixels2, K1, K2, thresholds_px[1], focal_unknown)
    if two_view.is_rotation(unexplained, inliers):
        raise JobFailed(
            f"{names} differ by a rotation alone (no parallax): turning the camera on the spot explains "
            f"{inliers - unexplained} of {inliers} matches, so depth cannot be seen; {MOVE}"
        )
    refined = two_view.refine(pixels1, pixels2, K1, K2, pose.cam2_from_cam1, 1.5 * max(thresholds_px))
    angles = two_view.parallax_angles(refined.points_cam1[refined.valid], refined.cam2_from_cam1)
    # the depth must be known to a quarter: parallax against the error of a match, both as angles
    focal_px = float(np.sqrt(K1[0, 0] * K1[1, 1]))
    enough = angles > 4 * max(refined.reprojection_error_px, 0.25 * thresholds_px[0]) / focal_px
    if np.count_nonzero(enough) < MIN_INLIERS:
        raise JobFailed(f"{names} show no parallax: the camera hardly moved against the distance of the scene; {MOVE}")
    index = np.flatnonzero(refined.valid)[enough]
    second_run = estimate_relative_pose(matches.points1, matches.points2, K1, K2, thresholds_px, seed + 1)
    runs = [pose if second_run is None else second_run]
    matched = MatchedPixels(
        matches.points1, matches.points2, sizes, thresholds_px, matches.tries, focal_known=not focal_unknown
    )
    evidence = two_view_evidence(matched, K1, K2, pose, runs, seed)
    return _TwoViewPoints(
        cam2_from_cam1=refined.cam2_from_cam1,
        points_cam1=refined.points_cam1[index],
        pixels1=pixels1[index],
        pixels2=pixels2[index],
        confidence=1 / (1 + (refined.errors_px[index] / max(thresholds_px)) ** 2),
        error_px=refined.reprojection_error_px,
        parallax_deg=float(np.degrees(np.median(angles[enough]))),
        pair=ImagePair((0, 1), count, int(refined.valid.sum()), confidence_from_evidence(evidence)),
    )


def _dense_map(
    first: np.ndarray, second: np.ndarray, K1: np.ndarray, K2: np.ndarray, sparse: _TwoViewPoints, config: MatchesConfig
) -> tuple[PointMap | None, str]:
    """View 1's dense points from the undistorted photos (H, W, 3), or None and the reason why there are none."""
    side_px = config.stereo_side_px or min(MAX_STEREO_SIDE_PX, max(first.shape[:2]))
    rgb1, map1_from_image = stereo.reduce_photo(first, side_px)
    rgb2, map2_from_image = stereo.reduce_photo(second, side_px)
    K1_map, K2_map = map1_from_image @ K1, map2_from_image @ K2
    sizes = [(rgb.shape[1], rgb.shape[0]) for rgb in (rgb1, rgb2)]
    rectification = stereo.rectify(K1_map, K2_map, sparse.cam2_from_cam1, *sizes, sparse.points_cam1)
    if isinstance(rectification, str):
        return None, rectification
    result = stereo.dense_depth(rgb1, rgb2, K1_map, K2_map, rectification)
    share = _agreement_with_sparse(result.depth, sparse.points_cam1, K1_map)
    if share < MIN_STEREO_AGREEMENT:
        return None, f"stereo matching agrees with only {share:.0%} of the matched points"
    points = backproject(pixel_grid(*result.depth.shape), result.depth, K1_map)
    valid = np.isfinite(result.depth) & (result.confidence >= config.min_confidence)
    return PointMap(points, result.confidence, valid, rgb1, np.linalg.inv(map1_from_image)), ""


def _agreement_with_sparse(depth: np.ndarray, points_cam1: np.ndarray, K: np.ndarray) -> float:
    """Of the sparse points at whose pixel there is a dense depth, the share where it is within 10 % of theirs."""
    height, width = depth.shape
    x, y = np.rint(project(points_cam1, K)).astype(int).T
    dense = depth[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    known = np.isfinite(dense)
    if not known.any():
        return 0.0
    return float((np.abs(dense[known] / points_cam1[known, 2] - 1) < 0.1).mean())
