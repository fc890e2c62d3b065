"""What two photos have in common: matches, and where the reference's points lie in metres, if that can be known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log10
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import absolute_pose, epipolar, poses, two_view
from dune_cli.geometry import two_view as pair_checks
from dune_cli.geometry.cameras import K_from_focal, backproject, focal_from_point_map, pixel_grid, transform_pixels
from dune_cli.geometry.depth_maps import sample_depth
from dune_cli.geometry.pose_confidence import (
    KNOWN_POINTS_DEG,
    MAX_LOG10_NFA,
    NO_EVIDENCE,
    Evidence,
    confidence_from_evidence,
    match_evidence,
    two_view_evidence,
)
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.io.safe_read import agreement
from dune_cli.matchers import mast3r
from dune_cli.matchers.filtering import ExtractedImage, extract_image, find_matches, non_static_mask
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.provenance import Source

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel


MIN_POINT_CONFIDENCE = 1.5  # of the points that give a focal length, as in `dune reconstruct`


@dataclass(frozen=True)
class CameraImage:
    """A photo and its camera: `K` (3, 3) in its pixels, `focal_source` given | exif | estimated | default; for a
    reference its `depth` (H, W) in metres, where it is known (0 or NaN: nowhere)."""

    photo: Photo
    K: np.ndarray
    focal_source: str
    depth: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.photo.path.name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photo.width, self.photo.height


@dataclass(frozen=True)
class TwoViewMatches:
    """Matches of a reference (first) and a query (second), with both cameras as they are known afterwards.

    `points` (M, 3): the matched points in metres in the reference camera's frame, NaN where unknown; None where lengths
    are not known at all.
    """

    reference: CameraImage
    query: CameraImage
    matches: Matches
    points: np.ndarray | None


class PairBackend(Protocol):
    """A way to see what photos have in common. `look` at each photo once, then `compare` any two.

    `is_metric`: it knows lengths for itself.
    """

    is_metric: bool

    @property
    def source(self) -> Source: ...

    def extract(self, shot: CameraImage) -> Any: ...

    def match(self, reference: Any, query: Any) -> TwoViewMatches: ...


class MatcherBackend:
    """A matcher; metric points where the reference has a depth map."""

    is_metric = False

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    @property
    def source(self) -> Source:
        return self.matcher.source

    def extract(self, shot: CameraImage) -> tuple[CameraImage, Any]:
        """The photo's features, for matchers that look at each photo alone."""
        return shot, extract_image(self.matcher, shot.photo.rgb).features

    def match(self, reference: tuple[CameraImage, Any], query: tuple[CameraImage, Any]) -> TwoViewMatches:
        (first, features1), (second, features2) = reference, query
        photos = ExtractedImage(first.photo.rgb, features1), ExtractedImage(second.photo.rgb, features2)
        matches = find_matches(self.matcher, *photos)
        points = None
        if first.depth is not None:
            points = backproject(matches.points1, sample_depth(first.depth, matches.points1), first.K)
        return TwoViewMatches(first, second, matches, points)


class TwoViewBackend:
    """A two-view model: reciprocal descriptor matches on its metric point maps, focal lengths from these maps."""

    is_metric = True

    def __init__(self, model: TwoViewModel, size_px: int | None = None, subsample: int = 8) -> None:
        self.model, self.size_px, self.subsample = model, size_px or model.size, subsample

    @property
    def source(self) -> Source:
        return self.model.source

    def extract(self, shot: CameraImage) -> tuple[CameraImage, Prepared, Any]:
        """The photo's encoder features."""
        import torch

        model = self.model
        prepared = prepare(shot.photo.rgb, self.size_px, model.patch, model.crop_square_to_4_3)
        where = next(model.parameters()).device
        with torch.inference_mode():
            return shot, prepared, model.encode(torch.from_numpy(prepared.image)[None].to(where))

    def match(
        self, reference: tuple[CameraImage, Prepared, Any], query: tuple[CameraImage, Prepared, Any]
    ) -> TwoViewMatches:
        """JobFailed where no focal length is given and none fits the point maps."""
        import torch

        (first, prepared1, features1), (second, prepared2, features2) = reference, query
        with torch.inference_mode():
            out = self.model.decode(features1, features2)
            found, xy1 = mast3r.matches_of(out, prepared1, prepared2, self.subsample)
            keep = non_static_mask(found, first.photo.rgb, second.photo.rgb)
            matches, xy1 = found.select(keep), xy1[keep]
            points = _numpy(out.points1)
            if first.focal_source == "default":
                first = _with_own_focal(first, prepared1, points, _numpy(out.confidence1))
            if second.focal_source == "default":
                back = self.model.decode(features2, features1, descriptors=False)
                second = _with_own_focal(second, prepared2, _numpy(back.points1), _numpy(back.confidence1))
        return TwoViewMatches(first, second, matches, points[xy1[:, 1], xy1[:, 0]])


def _with_own_focal(shot: CameraImage, prepared: Prepared, points: np.ndarray, confidence: np.ndarray) -> CameraImage:
    """The shot with the focal length of its point map (h, w, 3), the principal point at the photo's centre."""
    pixels = transform_pixels(np.linalg.inv(prepared.network_from_image), pixel_grid(prepared.height, prepared.width))
    width, height = shot.size
    focal_px = focal_from_point_map(
        points, pixels, np.array([width - 1, height - 1]) / 2, confidence >= MIN_POINT_CONFIDENCE
    )
    if focal_px is None:
        raise JobFailed(
            f"no focal length fits the model's points of {shot.name} (too few are confident); give --intrinsics or "
            "--fov-deg"
        )
    return replace(shot, K=K_from_focal(focal_px, width, height), focal_source="estimated")


def _numpy(values: Any) -> np.ndarray:
    return values[0].float().cpu().numpy().astype(np.float64)


# From matches to a pose, or to the reason why there is none.


PNP_THRESHOLD_PX = 3.0  # in pixels of the matched image, whose points are known to about that
MIN_SCALE_POINTS = 6
# of a pose that is given out: below it four of five are wrong, and none of those within 5 degrees lies there (pairs
# with wide baselines, sift and xfeat-lighterglue)
MIN_CONFIDENCE = 0.15
ARBITRARY_SCALE = (
    "two photos do not tell lengths: the translation is a direction of length 1; give --baseline METRES, --ref-depth "
    "of the reference, or a two-view --model"
)


@dataclass(frozen=True)
class Relocalization:
    """A query's pose relative to a reference, or why there is none (`message`; `query_from_ref` None then).

    `query_from_ref` (4, 4), its translation in metres where `scale` is "metric", of length 1 where it is "arbitrary".
    `scale_from` says in words where the length is from. `confidence` in [0, 1): the share of poses within 10
    degrees among those with such evidence. `inliers` out of `matches` agree. `rotated_deg`: by how much the query
    had to be turned clockwise to look like the reference. `fixed`: matches at the same pixels of both photos, left out.
    """

    query: CameraImage
    reference: CameraImage
    query_from_ref: np.ndarray | None
    scale: str
    scale_from: str
    matches: int
    inliers: int
    confidence: float
    solver: str
    message: str = ""
    rotated_deg: int = 0
    static_matches: int = 0
    evidence: Evidence | None = None

    @property
    def success(self) -> bool:
        return self.query_from_ref is not None

    @property
    def ref_from_query(self) -> np.ndarray | None:
        """(4, 4): its translation is the query camera's centre in the reference camera's frame."""
        return None if self.query_from_ref is None else poses.inverse(self.query_from_ref)

    @property
    def distance(self) -> float | None:
        """Between the two cameras."""
        return None if self.query_from_ref is None else float(np.linalg.norm(self.query_from_ref[:3, 3]))

    @property
    def rotation_deg(self) -> float | None:
        """The angle of the rotation between the cameras, in degrees."""
        return None if self.query_from_ref is None else float(np.degrees(poses.rotation_angle(self.query_from_ref)))


@dataclass(frozen=True)
class SolverConfig:
    """`solver` pnp | essential; `baseline` between the cameras in metres, where it is known; `min_confidence` of a
    pose that is given out; `seed` of the random sampling."""

    solver: str
    baseline: float | None = None
    min_confidence: float = MIN_CONFIDENCE
    seed: int = 0


@dataclass(frozen=True)
class _Found:
    evidence: Evidence
    pose: np.ndarray
    inliers: int
    confidence: float
    scale: str
    scale_from: str


class _NoPose(JobFailed):
    """Why there is no pose, and what was found until then."""

    def __init__(self, message: str, inliers: int = 0, confidence: float = 0.0) -> None:
        super().__init__(message)
        self.inliers, self.confidence = inliers, confidence


def relocalize(common: TwoViewMatches, config: SolverConfig) -> Relocalization:
    """The query's pose by PnP on the reference's metric points, or by the essential matrix (then its length from these
    points, or `baseline`, or none)."""
    metric = common.points is not None or config.baseline is not None
    found, no_pose = None, _NoPose("")
    try:
        _refuse_one_photo_twice(common)
        found = (_by_pnp if config.solver == "pnp" else _by_essential)(common, config)
    except _NoPose as error:
        no_pose = error
    return Relocalization(
        query=common.query,
        reference=common.reference,
        query_from_ref=None if found is None else found.pose,
        scale=("metric" if metric else "arbitrary") if found is None else found.scale,
        scale_from="" if found is None else found.scale_from,
        matches=len(common.matches.points1),
        rotated_deg=common.matches.rotated_deg,
        static_matches=common.matches.static_matches,
        inliers=(found or no_pose).inliers,
        confidence=(found or no_pose).confidence,
        solver=config.solver,
        message=str(no_pose),
        evidence=None if found is None else found.evidence,
    )


def failed_relocalization(
    reference: CameraImage, query: CameraImage, config: SolverConfig, reason: str, metric: bool
) -> Relocalization:
    """A pair that did not even come to matches."""
    scale = "metric" if metric else "arbitrary"
    return Relocalization(query, reference, None, scale, "", 0, 0, 0.0, config.solver, reason)


def _by_pnp(common: TwoViewMatches, config: SolverConfig) -> _Found:
    if common.points is None:
        raise ValueError("PnP needs metric points of the reference")
    matches, query = common.matches, common.query
    known = np.isfinite(common.points).all(-1)
    count = int(known.sum())
    threshold_px = PNP_THRESHOLD_PX * matches.pixel_size2
    pose = absolute_pose.estimate_absolute_pose(
        common.points[known], matches.points2[known], query.K, threshold_px, config.seed
    )
    inliers = 0 if pose is None else int(pose.inliers.sum())
    chance = pair_checks.log10_nfa_pnp(inliers, count, threshold_px, query.size) + log10(matches.tries)
    evidence = NO_EVIDENCE if pose is None else _pnp_evidence(common, known, pose, chance, threshold_px, config.seed)
    confidence = confidence_from_evidence(evidence)
    if pose is None or confidence < config.min_confidence:
        depth = "" if count == len(known) else f", {count} of them at a known depth"
        raise _elsewhere(common, inliers, confidence, depth)
    where = "the depth map of the reference" if common.reference.depth is not None else "the model's metric points"
    return _Found(evidence, pose.cam_from_world, inliers, confidence, "metric", where)


def _by_essential(common: TwoViewMatches, config: SolverConfig) -> _Found:
    matches, first, second = common.matches, common.reference, common.query
    thresholds = matches.pixel_size1, matches.pixel_size2
    pair, others = _best_relative_pose(common, config.seed)
    inliers = 0 if pair is None else int(pair.inliers.sum())
    chance = pair_checks.log10_nfa_epipolar(inliers, len(matches.points1), thresholds, (first.size, second.size))
    chance += log10(matches.tries)
    evidence = NO_EVIDENCE if pair is None else _pair_evidence(common, pair, others, config.seed)
    confidence = confidence_from_evidence(evidence)
    if pair is None or (chance > MAX_LOG10_NFA and config.min_confidence > 0):
        raise _elsewhere(common, inliers, confidence, "")
    pixels1, pixels2 = matches.points1[pair.inliers], matches.points2[pair.inliers]
    guessed = "default" in (first.focal_source, second.focal_source)
    moving = pair_checks.unexplained_by_rotation(pixels1, pixels2, first.K, second.K, thresholds[1], guessed)
    if pair_checks.is_rotation(moving, inliers):
        raise _only_turned(common, pixels1, pixels2, confidence)
    if confidence < config.min_confidence:
        raise _elsewhere(common, inliers, confidence, "")
    refined = two_view.refine(pixels1, pixels2, first.K, second.K, pair.cam2_from_cam1, 1.5 * max(thresholds))
    pose, agreed = refined.cam2_from_cam1, int(refined.valid.sum())
    if common.points is not None:
        length = _length(common, pair.inliers, refined)
        if length is None:
            raise _NoPose(
                f"{second.name}: fewer than {MIN_SCALE_POINTS} of the {agreed} agreeing matches have a depth in "
                f"{first.name}, so the distance is unknown; give a denser depth map, or --baseline METRES",
                agreed,
                confidence,
            )
        where = "the depth map of the reference" if first.depth is not None else "the model's metric points"
        return _Found(evidence, _with_length(pose, length), agreed, confidence, "metric", where)
    if config.baseline is not None:
        return _Found(evidence, _with_length(pose, config.baseline), agreed, confidence, "metric", "--baseline")
    return _Found(evidence, pose, agreed, confidence, "arbitrary", ARBITRARY_SCALE)


def _best_relative_pose(
    common: TwoViewMatches, seed: int
) -> tuple[epipolar.RelativePose | None, list[epipolar.RelativePose]]:
    """The one that fits best of four runs: two samplings, each from either photo to the other, so that swapped photos
    give the same poses to choose from; and all that were found."""
    matches, K1, K2 = common.matches, common.reference.K, common.query.K
    thresholds = matches.pixel_size1, matches.pixel_size2
    found = []
    for sampling in (2 * seed, 2 * seed + 1):
        there = epipolar.estimate_relative_pose(matches.points1, matches.points2, K1, K2, thresholds, sampling)
        back = epipolar.estimate_relative_pose(matches.points2, matches.points1, K2, K1, thresholds[::-1], sampling)
        if there is not None:
            found.append(there)
        if back is not None:
            found.append(epipolar.RelativePose(poses.inverse(back.cam2_from_cam1), back.inliers))

    def fit(pair: epipolar.RelativePose) -> float:
        """The truncated quadratic gain of M-estimator sampling (P. Torr and A. Zisserman, "MLESAC", 2000)."""
        units = [np.diag([1 / threshold, 1 / threshold, 1.0]) for threshold in thresholds]
        points1, points2 = (p[pair.inliers] / t for p, t in zip((matches.points1, matches.points2), thresholds))
        errors = epipolar.sampson_error_px(points1, points2, units[0] @ K1, units[1] @ K2, pair.cam2_from_cam1)
        return float((1 - errors**2).sum())

    return max(found, key=fit, default=None), found


def _pair_evidence(
    common: TwoViewMatches, pair: epipolar.RelativePose, runs: list[epipolar.RelativePose], seed: int
) -> Evidence:
    """Of a relative pose and the `runs` of the solver, itself among them."""
    first, second, matches = common.reference, common.query, common.matches
    return two_view_evidence(
        matches.points1,
        matches.points2,
        first.K,
        second.K,
        pair,
        runs,
        (first.size, second.size),
        (matches.pixel_size1, matches.pixel_size2),
        seed,
        matches.tries,
        _lens_known(common),
    )


def _pnp_evidence(
    common: TwoViewMatches,
    known: np.ndarray,
    pose: absolute_pose.AbsolutePose,
    chance: float,
    threshold_px: float,
    seed: int,
) -> Evidence:
    """Of a pose on the reference's points, those `known` (M,) of all matches."""
    assert common.points is not None
    matches, first, second = common.matches, common.reference, common.query
    seen = common.points[known], matches.points2[known], second.K, threshold_px
    again = [absolute_pose.estimate_absolute_pose(*seen, seed + step) for step in (1, 2)]
    errors = [
        float(epipolar.rotation_error(run.cam_from_world[:3, :3], pose.cam_from_world[:3, :3]))
        for run in again
        if run is not None
    ]
    agree = np.zeros(len(known), dtype=bool)
    agree[np.flatnonzero(known)[pose.inliers]] = True
    return match_evidence(
        matches.points1,
        matches.points2,
        agree,
        known,
        (first.size, second.size),
        (matches.pixel_size1, matches.pixel_size2),
        chance,
        float(np.degrees(np.median([0.0, *errors]))),
        KNOWN_POINTS_DEG,
        seed,
        _lens_known(common),
    )


def _lens_known(common: TwoViewMatches) -> bool:
    return "default" not in (common.reference.focal_source, common.query.focal_source)


def _length(common: TwoViewMatches, used: np.ndarray, refined: two_view.TwoViewGeometry) -> float | None:
    """The baseline in metres: median ratio of metric to triangulated depth (z in the reference), weighted by parallax,
    which is what triangulated depth is accurate to."""
    assert common.points is not None
    metric_z = common.points[used][:, 2]
    use = refined.valid & np.isfinite(metric_z) & (metric_z > 0)
    if np.count_nonzero(use) < MIN_SCALE_POINTS:
        return None
    ratio = metric_z[use] / refined.points_cam1[use, 2]
    weight = two_view.parallax_angles(refined.points_cam1[use], refined.cam2_from_cam1)
    order = np.argsort(ratio)
    share = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(share, share[-1] / 2)])


def _with_length(pose: np.ndarray, length: float) -> np.ndarray:
    return poses.from_rotation_translation(pose[:3, :3], length * pose[:3, 3])


def _refuse_one_photo_twice(common: TwoViewMatches) -> None:
    one, two = common.reference.photo, common.query.photo
    if one.rgb.shape == two.rgb.shape and np.array_equal(one.rgb, two.rgb):
        raise _NoPose(f"{two.path.name} and {one.path.name} are the same photo; give another one")


def _only_turned(common: TwoViewMatches, pixels1: np.ndarray, pixels2: np.ndarray, confidence: float) -> _NoPose:
    first, second = common.reference, common.query
    names = f"{second.name} and {first.name}"
    matches = common.matches
    if pair_checks.is_same_view(matches.points1, matches.points2, (matches.pixel_size1, matches.pixel_size2)):
        text = f"{names} were taken from one place in one direction"
    else:
        rotation, _ = two_view.rotation_only(pixels1, pixels2, first.K, second.K)
        text = (
            f"{names} differ by a rotation alone, of {np.degrees(poses.rotation_angle(rotation)):.1f} degrees, which "
            "shows no direction of motion"
        )
    cure = "--solver pnp" if common.points is not None else "--ref-depth of the reference or a two-view --model"
    return _NoPose(f"{text}; with {cure} such a pose is found too", len(pixels1), confidence)


def _elsewhere(common: TwoViewMatches, inliers: int, confidence: float, depth: str) -> _NoPose:
    matches = common.matches
    if matches.static_matches > len(matches.points1) or matches.static_matches > inliers:
        return _NoPose(
            f"{common.query.name} and {common.reference.name} agree only in what lies at the same pixels of both "
            f"({matches.static_matches} matches: a caption, a logo, a border or a part of the camera's mount), which "
            f"tells nothing of where they were taken; of the other {len(matches.points1)} matches{depth} "
            f"{inliers or 'too few'} agree on a pose; crop it away, and take photos that overlap more",
            inliers,
            confidence,
        )
    return _NoPose(
        f"{common.query.name} and {common.reference.name} do not show enough of the same place: "
        f"{agreement(len(common.matches.points1), inliers, 'a pose')}{depth} (confidence {confidence:.2f}); "
        "take photos that overlap more, or try another --matcher",
        inliers,
        confidence,
    )
