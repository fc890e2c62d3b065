"""Relative pose of a query photo and a reference photo: pair backends that match them, and solvers for the pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.geometry import absolute_pose, epipolar, poses, two_view
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import K_from_focal, backproject, focal_from_point_map, pixel_grid, transform_pixels
from dune_cli.geometry.depth_maps import sample_depth
from dune_cli.geometry.pose_confidence import (
    KNOWN_POINTS_DEG,
    MAX_LOG10_NFA,
    NO_EVIDENCE,
    Evidence,
    MatchedPixels,
    confidence_from_evidence,
    match_evidence,
    two_view_evidence,
)
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import Prepared, prepare
from dune_cli.matchers import mast3r
from dune_cli.matchers.filtering import ExtractedImage, LazyThumbnail, extract_images, find_matches, non_static_mask
from dune_cli.matchers.matcher import Matcher, Matches
from dune_cli.provenance import Source
from dune_cli.sfm.cameras import undistort_matches
from dune_cli.sfm.matching import match_counts_text

if TYPE_CHECKING:
    from dune_cli.models.mast3r import TwoViewModel

MIN_POINT_CONFIDENCE = 1.5  # of the points that give a focal length, as in `dune reconstruct`
PNP_THRESHOLD_PX = 3.0  # in matched pixels; the points are known to about that
MIN_SCALE_POINTS = 6
# of a pose that is returned: below it four of five are wrong, and none of those within 5 degrees lies there (pairs with
# wide baselines, sift and xfeat-lighterglue)
MIN_CONFIDENCE = 0.15
ARBITRARY_SCALE = (
    "the scale of two photos is unknown: the translation is a direction of length 1; give --baseline METRES, "
    "--ref-depth of the reference, or a two-view --model"
)


@dataclass(frozen=True)
class CameraImage:
    """A photo and its camera: `K` (3, 3) in its pixels, `focal_source` given | exif | estimated | default. `lens`: the
    camera with its distortion, whose pinhole part is K; None for a pinhole camera. Of a reference also its `depth`
    (H, W) in metres (0 or NaN where unknown), if there is one."""

    photo: Photo
    K: np.ndarray
    focal_source: str
    depth: np.ndarray | None = None
    lens: Camera | None = None

    @classmethod
    def of(cls, photo: Photo, own: PhotoCamera, depth: np.ndarray | None = None) -> CameraImage:
        """A photo with its own camera."""
        lens = None if own.camera.model == "PINHOLE" else own.camera
        return cls(photo, own.K, own.source, depth, lens)

    @property
    def camera(self) -> Camera:
        """The lens, or the pinhole camera of K."""
        return Camera.pinhole(self.K, *self.size) if self.lens is None else self.lens

    @property
    def name(self) -> str:
        return self.photo.path.name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.photo.width, self.photo.height


@dataclass(frozen=True)
class CameraFeatures:
    """A photo with its camera, and the `features` that a pair backend extracted from it."""

    image: CameraImage
    features: Any


@dataclass(frozen=True)
class TwoViewMatches:
    """Matches of a reference (first) and a query (second), with both cameras as they are known after matching; at the
    undistorted pixels of lenses with distortion.

    `points` (M, 3): the matched points in metres in the reference camera's frame, NaN where unknown; None where the
    scale is unknown.
    """

    reference: CameraImage
    query: CameraImage
    matches: Matches
    points: np.ndarray | None

    @property
    def pixel_sizes_px(self) -> tuple[float, float]:
        return self.matches.pixel_size1, self.matches.pixel_size2

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.reference.size, self.query.size

    @property
    def focal_known(self) -> bool:
        """Whether neither focal length is a guess."""
        return "default" not in (self.reference.focal_source, self.query.focal_source)

    @property
    def matched_pixels(self) -> MatchedPixels:
        matches = self.matches
        return MatchedPixels(
            matches.points1, matches.points2, self.sizes, self.pixel_sizes_px, matches.tries, self.focal_known
        )

    @property
    def points_source(self) -> str:
        """Where the points, and so the scale, are from, in words."""
        return "the model's metric points" if self.reference.depth is None else "the depth map of the reference"


class PairBackend(Protocol):
    """A way to match two photos: `extract` each photo once, then `match` any two.

    `is_metric`: its matches have points in metres.
    """

    is_metric: bool

    @property
    def source(self) -> Source: ...

    def extract(self, image: CameraImage) -> CameraFeatures: ...

    def extract_all(self, images: Sequence[CameraImage]) -> list[CameraFeatures]: ...

    def match(self, reference: CameraFeatures, query: CameraFeatures) -> TwoViewMatches: ...


class MatcherBackend:
    """A matcher. Points are metric where the reference has a depth map."""

    is_metric = False

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    @property
    def source(self) -> Source:
        return self.matcher.source

    def extract(self, image: CameraImage) -> CameraFeatures:
        """The photo's features; None with matchers that have none."""
        return self.extract_all([image])[0]

    def extract_all(self, images: Sequence[CameraImage]) -> list[CameraFeatures]:
        """`extract` of a few photos, at once where that is quicker."""
        extracted = extract_images(self.matcher, [image.photo.rgb for image in images])
        return [CameraFeatures(image, of.features) for image, of in zip(images, extracted)]

    def match(self, reference: CameraFeatures, query: CameraFeatures) -> TwoViewMatches:
        first, second = reference.image, query.image
        matches = find_matches(
            self.matcher,
            ExtractedImage(first.photo.rgb, reference.features),
            ExtractedImage(second.photo.rgb, query.features),
        )
        depth = None if first.depth is None else sample_depth(first.depth, matches.points1)
        matches, seen = undistort_matches(matches, first.camera, second.camera)
        points = None if depth is None else backproject(matches.points1, depth[seen], first.K)
        return TwoViewMatches(first, second, matches, points)


class TwoViewBackend:
    """A two-view model: reciprocal descriptor matches on its metric point maps, focal lengths from these maps."""

    is_metric = True

    def __init__(self, model: TwoViewModel, size_px: int | None = None, subsample: int = 8) -> None:
        self.model, self.size_px, self.subsample = model, size_px or model.size, subsample

    @property
    def source(self) -> Source:
        return self.model.source

    def extract(self, image: CameraImage) -> CameraFeatures:
        """The photo as the network gets it, and its encoder features."""
        import torch

        model = self.model
        prepared = prepare(image.photo.rgb, self.size_px, model.patch, model.crop_square_to_4_3)
        device = next(model.parameters()).device
        with torch.inference_mode():
            encoded = model.encode(torch.from_numpy(prepared.image)[None].to(device))
        return CameraFeatures(image, (prepared, encoded))

    def extract_all(self, images: Sequence[CameraImage]) -> list[CameraFeatures]:
        """`extract` of each photo."""
        return [self.extract(image) for image in images]

    def match(self, reference: CameraFeatures, query: CameraFeatures) -> TwoViewMatches:
        """JobFailed where no focal length is given and none fits the point maps."""
        import torch

        first, second = reference.image, query.image
        (prepared1, encoded1), (prepared2, encoded2) = reference.features, query.features
        with torch.inference_mode():
            output = self.model.decode(encoded1, encoded2)
            matches, xy1 = mast3r.matches_of(output, prepared1, prepared2, self.subsample)
            keep = non_static_mask(matches, LazyThumbnail.of(first.photo.rgb), LazyThumbnail.of(second.photo.rgb))
            matches, xy1 = matches.select(keep), xy1[keep]
            points = _to_numpy(output.points1)
            if first.focal_source == "default":
                first = _with_focal_from_points(first, prepared1, points, _to_numpy(output.confidence1))
            if second.focal_source == "default":
                reverse = self.model.decode(encoded2, encoded1, descriptors=False)
                second = _with_focal_from_points(
                    second, prepared2, _to_numpy(reverse.points1), _to_numpy(reverse.confidence1)
                )
        matches, seen = undistort_matches(matches, first.camera, second.camera)
        return TwoViewMatches(first, second, matches, points[xy1[seen, 1], xy1[seen, 0]])


def _with_focal_from_points(
    image: CameraImage, prepared: Prepared, points: np.ndarray, confidence: np.ndarray
) -> CameraImage:
    """The image with the focal length of its point map (h, w, 3), the principal point at the photo's centre."""
    pixels = transform_pixels(np.linalg.inv(prepared.network_from_image), pixel_grid(prepared.height, prepared.width))
    width, height = image.size
    focal_px = focal_from_point_map(
        points, pixels, np.array([width - 1, height - 1]) / 2, confidence >= MIN_POINT_CONFIDENCE
    )
    if focal_px is None:
        raise JobFailed(
            f"no focal length fits the model's points of {image.name} (too few are confident); give --intrinsics or "
            "--fov-deg"
        )
    return replace(image, K=K_from_focal(focal_px, width, height), focal_source="estimated")


def _to_numpy(values: Any) -> np.ndarray:
    return values[0].float().cpu().numpy().astype(np.float64)


# From matches to a pose, or to the reason why there is none.


@dataclass(frozen=True)
class Relocalization:
    """A query's pose relative to a reference, or why there is none (`message`; `query_from_ref` None then).

    `query_from_ref` (4, 4): its translation is in metres where `scale` is "metric", of length 1 where it is
    "arbitrary"; `scale_from` says what the scale is from. `confidence` in [0, 1): the share of poses with such evidence
    that are within 10 degrees. `inliers` of the `matches` agree. `rotated_deg`: the clockwise rotation after which the
    query was matched. `static_matches`: how many were left out because they lie at the same pixels of both photos.
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
    pose that is returned; `seed` of the random sampling."""

    solver: str
    baseline: float | None = None
    min_confidence: float = MIN_CONFIDENCE
    seed: int = 0


@dataclass(frozen=True)
class _Estimate:
    evidence: Evidence
    query_from_ref: np.ndarray
    inliers: int
    confidence: float
    scale: str
    scale_from: str


class _NoPose(JobFailed):
    """Why there is no pose, with the inliers and the confidence of the one that was refused."""

    def __init__(self, message: str, inliers: int = 0, confidence: float = 0.0) -> None:
        super().__init__(message)
        self.inliers, self.confidence = inliers, confidence


def relocalize(pair: TwoViewMatches, config: SolverConfig) -> Relocalization:
    """The query's pose by PnP on the reference's metric points, or by the essential matrix (with the scale of these
    points, of `baseline`, or none)."""
    metric = pair.points is not None or config.baseline is not None
    estimate, no_pose = None, _NoPose("")
    try:
        _check_different_photos(pair)
        estimate = (_solve_pnp if config.solver == "pnp" else _solve_essential)(pair, config)
    except _NoPose as error:
        no_pose = error
    return Relocalization(
        query=pair.query,
        reference=pair.reference,
        query_from_ref=None if estimate is None else estimate.query_from_ref,
        scale=("metric" if metric else "arbitrary") if estimate is None else estimate.scale,
        scale_from="" if estimate is None else estimate.scale_from,
        matches=len(pair.matches.points1),
        rotated_deg=pair.matches.rotated_deg,
        static_matches=pair.matches.static_matches,
        inliers=(estimate or no_pose).inliers,
        confidence=(estimate or no_pose).confidence,
        solver=config.solver,
        message=str(no_pose),
        evidence=None if estimate is None else estimate.evidence,
    )


def failed_relocalization(
    reference: CameraImage, query: CameraImage, config: SolverConfig, reason: str, metric: bool
) -> Relocalization:
    """The result of a pair that could not be matched."""
    scale = "metric" if metric else "arbitrary"
    return Relocalization(query, reference, None, scale, "", 0, 0, 0.0, config.solver, reason)


def _check_different_photos(pair: TwoViewMatches) -> None:
    one, two = pair.reference.photo, pair.query.photo
    if one.rgb.shape == two.rgb.shape and np.array_equal(one.rgb, two.rgb):
        raise _NoPose(f"{two.path.name} and {one.path.name} are the same photo; give another one")


def _solve_pnp(pair: TwoViewMatches, config: SolverConfig) -> _Estimate:
    if pair.points is None:
        raise ValueError("PnP needs metric points of the reference")
    matches, query = pair.matches, pair.query
    known = np.isfinite(pair.points).all(-1)
    count = int(known.sum())
    threshold_px = PNP_THRESHOLD_PX * matches.pixel_size2
    points, pixels = pair.points[known], matches.points2[known]
    pose = absolute_pose.estimate_absolute_pose(points, pixels, query.K, threshold_px, config.seed)
    inliers = 0 if pose is None else int(pose.inliers.sum())
    log10_nfa = two_view.log10_nfa_pnp(inliers, count, threshold_px, query.size)
    evidence = NO_EVIDENCE if pose is None else _pnp_evidence(pair, known, pose, log10_nfa, threshold_px, config.seed)
    confidence = confidence_from_evidence(evidence)
    if pose is None or confidence < config.min_confidence:
        depth = "" if count == len(known) else f", {count} of them at a known depth"
        raise _too_few_inliers(pair, inliers, confidence, depth)
    return _Estimate(evidence, pose.cam_from_world, inliers, confidence, "metric", pair.points_source)


def _pnp_evidence(
    pair: TwoViewMatches,
    known: np.ndarray,
    pose: absolute_pose.AbsolutePose,
    log10_nfa: float,
    threshold_px: float,
    seed: int,
) -> Evidence:
    """Of a pose on the matches with `known` (M,) points."""
    assert pair.points is not None
    matches = pair.matches
    problem = pair.points[known], matches.points2[known], pair.query.K, threshold_px
    runs = [absolute_pose.estimate_absolute_pose(*problem, seed + step) for step in (1, 2)]
    rotation = pose.cam_from_world[:3, :3]
    errors = [float(epipolar.rotation_error(run.cam_from_world[:3, :3], rotation)) for run in runs if run is not None]
    inliers = np.zeros(len(known), dtype=bool)
    inliers[np.flatnonzero(known)[pose.inliers]] = True
    repeatability_deg = float(np.degrees(np.median([0.0, *errors])))
    return match_evidence(pair.matched_pixels, inliers, known, log10_nfa, repeatability_deg, KNOWN_POINTS_DEG, seed)


def _solve_essential(pair: TwoViewMatches, config: SolverConfig) -> _Estimate:
    matches, first, second = pair.matches, pair.reference, pair.query
    best, runs = epipolar.best_relative_pose(
        matches.points1, matches.points2, first.K, second.K, pair.pixel_sizes_px, config.seed
    )
    inliers = 0 if best is None else int(best.inliers.sum())
    log10_nfa = two_view.log10_nfa_epipolar(inliers, len(matches.points1), pair.pixel_sizes_px, pair.sizes)
    log10_nfa += log10(matches.tries)
    evidence = NO_EVIDENCE
    if best is not None:
        evidence = two_view_evidence(pair.matched_pixels, first.K, second.K, best, runs, config.seed)
    confidence = confidence_from_evidence(evidence)
    if best is None or (log10_nfa > MAX_LOG10_NFA and config.min_confidence > 0):
        raise _too_few_inliers(pair, inliers, confidence)
    pixels1, pixels2 = matches.points1[best.inliers], matches.points2[best.inliers]
    unexplained = two_view.unexplained_by_rotation(
        pixels1, pixels2, first.K, second.K, matches.pixel_size2, not pair.focal_known
    )
    if two_view.is_rotation(unexplained, inliers):
        raise _pure_rotation(pair, pixels1, pixels2, confidence)
    if confidence < config.min_confidence:
        raise _too_few_inliers(pair, inliers, confidence)
    threshold_px = 1.5 * max(pair.pixel_sizes_px)
    refined = two_view.refine(pixels1, pixels2, first.K, second.K, best.cam2_from_cam1, threshold_px)
    pose, agreed = refined.cam2_from_cam1, int(refined.valid.sum())
    if pair.points is not None:
        length = _baseline_from_points(pair, best.inliers, refined)
        if length is None:
            raise _NoPose(
                f"{second.name}: fewer than {MIN_SCALE_POINTS} of the {agreed} agreeing matches have a depth in "
                f"{first.name}, so the distance is unknown; give a denser depth map, or --baseline METRES",
                agreed,
                confidence,
            )
        return _Estimate(evidence, _with_baseline(pose, length), agreed, confidence, "metric", pair.points_source)
    if config.baseline is not None:
        pose = _with_baseline(pose, config.baseline)
        return _Estimate(evidence, pose, agreed, confidence, "metric", "--baseline")
    return _Estimate(evidence, pose, agreed, confidence, "arbitrary", ARBITRARY_SCALE)


def _baseline_from_points(pair: TwoViewMatches, inliers: np.ndarray, refined: two_view.TwoViewGeometry) -> float | None:
    """The baseline in metres: median ratio of metric to triangulated depth (z in the reference), weighted by parallax,
    which the accuracy of a triangulated depth grows with. None with too few points of known depth."""
    assert pair.points is not None
    metric_z = pair.points[inliers][:, 2]
    use = refined.valid & np.isfinite(metric_z) & (metric_z > 0)
    if np.count_nonzero(use) < MIN_SCALE_POINTS:
        return None
    ratio = metric_z[use] / refined.points_cam1[use, 2]
    weight = two_view.parallax_angles(refined.points_cam1[use], refined.cam2_from_cam1)
    order = np.argsort(ratio)
    cumulative = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


def _with_baseline(pose: np.ndarray, length: float) -> np.ndarray:
    return poses.from_rotation_translation(pose[:3, :3], length * pose[:3, 3])


def _pure_rotation(pair: TwoViewMatches, pixels1: np.ndarray, pixels2: np.ndarray, confidence: float) -> _NoPose:
    first, second, matches = pair.reference, pair.query, pair.matches
    names = f"{second.name} and {first.name}"
    if two_view.is_same_view(matches.points1, matches.points2, pair.pixel_sizes_px):
        text = f"{names} were taken from one place in one direction"
    else:
        rotation, _ = two_view.rotation_only(pixels1, pixels2, first.K, second.K)
        text = (
            f"{names} differ by a rotation alone, of {np.degrees(poses.rotation_angle(rotation)):.1f} degrees, which "
            "does not determine a direction of motion"
        )
    cure = "--solver pnp" if pair.points is not None else "--ref-depth of the reference or a two-view --model"
    return _NoPose(f"{text}; with {cure} such a pose can be estimated, too", len(pixels1), confidence)


def _too_few_inliers(pair: TwoViewMatches, inliers: int, confidence: float, depth: str = "") -> _NoPose:
    matches = pair.matches
    if matches.static_matches > len(matches.points1) or matches.static_matches > inliers:
        return _NoPose(
            f"{pair.query.name} and {pair.reference.name} agree only in matches at the same pixels of both "
            f"({matches.static_matches}: a caption, a logo, a border or a part of the camera's mount), which are no "
            f"evidence for a pose; of the other {len(matches.points1)} matches{depth} {inliers or 'too few'} agree on "
            "a pose; crop the static part away, and take photos that overlap more",
            inliers,
            confidence,
        )
    return _NoPose(
        f"{pair.query.name} and {pair.reference.name} do not show enough of the same place: "
        f"{match_counts_text(len(matches.points1), inliers, 'a pose')}{depth} (confidence {confidence:.2f}); "
        "take photos that overlap more, or try another --matcher",
        inliers,
        confidence,
    )
