"""Reconstructions of photos with known cameras: who is placed, and how well. Sets are `map_reloc.read_places`'."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.evaluation.map_reloc import Place
from dune_cli.evaluation.sift_mapping import map_by_sift
from dune_cli.evaluation.trajectory import STILL, camera_errors, extent, pair_errors_deg
from dune_cli.geometry.pose_auc import pose_auc
from dune_cli.io.atomic import scratch_folder
from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.io.work_folder import WorkFolder
from dune_cli.matchers.base import Matcher
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct import many, many_pointmaps
from dune_cli.tasks.reconstruct.scene import Scene

if TYPE_CHECKING:
    from dune_cli.models.two_view import TwoViewModel

AUC_DEG = (5, 10, 30)
Intrinsics = Sequence[tuple[np.ndarray, str]]
Method = Callable[[Place, bool], np.ndarray]  # (N, 4, 4) world_from_cam, NaN where not registered


@dataclass(frozen=True)
class SetScore:
    """A method on a set. Medians over registered cameras after a similarity fit (`rotation_deg`, `centre` in the set's
    unit, `centre_share` of its extent) and over pairs of them (`pair_*`); areas over all pairs, 180 degrees where a
    photo is missing; `completeness`: the share of the photos that is registered.

    `scale_error`: of a set in metres, how far off all lengths are (a share) once the distance of the first two
    registered photos is given; `scale_error_neighbours`: the median over every neighbouring two. NaN where there is
    nothing to measure. `reason`: why there is no reconstruction.
    """

    set_name: str
    method: str
    photos: int
    registered: int
    completeness: float
    rotation_deg: float
    centre: float
    centre_share: float
    pair_rotation_deg: float
    pair_direction_deg: float
    auc5: float
    auc10: float
    auc30: float
    scale_error: float
    scale_error_neighbours: float
    seconds: float
    reason: str | None


def run_method(place: Place, name: str, method: Method, known_intrinsics: bool) -> SetScore:
    """Reconstructs the set's photos from nothing and scores the cameras; a failed job is a score of no cameras."""
    start = time.perf_counter()
    reason = None
    try:
        found = method(place, known_intrinsics)
    except JobFailed as error:
        console.note(f"{place.name}, {name}: {error}")
        found, reason = np.full((len(place.map.images), 4, 4), np.nan), str(error)
    return score(place, name, found, time.perf_counter() - start, reason)


def score(place: Place, name: str, found: np.ndarray, seconds: float, reason: str | None = None) -> SetScore:
    """Of cameras (N, 4, 4) `world_from_cam` in any world and scale, NaN where they are missing."""
    true = np.stack([image.world_from_cam for image in place.map.images])
    have = np.flatnonzero(np.isfinite(found).all((1, 2)))
    nan = float("nan")
    rotation = centre = share = first = neighbours = pair_rotation = pair_direction = nan
    if len(have) >= 2 and extent(found[have]) > 0:
        errors = camera_errors(true[have], found[have])
        rotation, centre = float(np.median(errors.rotation_deg)), float(np.median(errors.centre))
        share = centre / extent(true)
        turns, directions = pair_errors_deg(true[have], found[have])
        pair_rotation, pair_direction = float(np.median(turns)), float(np.median(directions))
        if place.metric:
            first, neighbours = _scale_errors(true[have], found[have], errors.scale)
    areas = pose_auc(np.maximum(*pair_errors_deg(true, found)), AUC_DEG)
    return SetScore(
        place.name,
        name,
        len(true),
        len(have),
        len(have) / len(true),
        rotation,
        centre,
        share,
        pair_rotation,
        pair_direction,
        *areas,
        first,
        neighbours,
        seconds,
        reason,
    )


def by_matcher(matcher: Matcher, config: many.ManyConfig) -> Method:
    """`dune reconstruct --method matches`, its work folder empty."""

    def method(place: Place, known_intrinsics: bool) -> np.ndarray:
        with scratch_folder(prefix="dune-eval-") as folder:
            paths = [image.file for image in place.map.images]
            scene = many.reconstruct(
                paths, intrinsics_of(place, known_intrinsics), matcher, config, WorkFolder(folder), Run(config.seed)
            )
        return poses_of(scene)

    return method


def by_pointmaps(model: TwoViewModel, config: many_pointmaps.ManyPointMapsConfig) -> Method:
    """`dune reconstruct --method pointmap`, its work folder empty."""

    def method(place: Place, known_intrinsics: bool) -> np.ndarray:
        with scratch_folder(prefix="dune-eval-") as folder:
            paths = [image.file for image in place.map.images]
            of = intrinsics_of(place, known_intrinsics)
            scene = many_pointmaps.reconstruct(paths, of, model, config, WorkFolder(folder), Run(config.seed))
        return poses_of(scene)

    return method


def by_sift(seed: int) -> Method:
    """The control."""

    def method(place: Place, known_intrinsics: bool) -> np.ndarray:
        facts = [read_photo(image.file).facts for image in place.map.images]
        lenses, lens_of = many.share_lenses(facts, intrinsics_of(place, known_intrinsics)(facts))
        return map_by_sift([photo.path for photo in facts], lenses, lens_of, seed)

    return method


def intrinsics_of(place: Place, known: bool) -> Callable[[Sequence[PhotoFacts]], Intrinsics]:
    """The true K of each photo (without its distortion), or what the photos themselves tell."""

    def of(facts: Sequence[PhotoFacts]) -> Intrinsics:
        if known:
            return [(image.lens.K, "given") for image in place.map.images]
        return resolve_intrinsics(facts, None, None)

    return of


def poses_of(scene: Scene) -> np.ndarray:
    """(N, 4, 4), NaN for photos that are not registered."""
    return np.stack([v.world_from_cam if v.registered else np.full((4, 4), np.nan) for v in scene.views])


def as_dict(found: SetScore) -> dict[str, Any]:
    """Rounded, for JSON."""
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(found).items()}


def _scale_errors(true: np.ndarray, found: np.ndarray, scale: float) -> tuple[float, float]:
    """Shares by which lengths are off, with the first two cameras' distance given, and the median over neighbours."""
    steps = [np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) for poses in (true, found)]
    moved = steps[0] > STILL * extent(true)
    off = np.full(len(moved), np.nan)
    with np.errstate(divide="ignore"):
        off[moved] = np.abs(steps[0][moved] / steps[1][moved] / scale - 1)
    return float(off[0]), float(np.nanmedian(off)) if moved.any() else float("nan")
