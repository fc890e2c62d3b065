"""`dune eval reloc`: each photo of a set is left out once and localized in a map of the others; photos of other sets
must be refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dune_cli.evaluation.metrics import mean, median
from dune_cli.evaluation.posed_sets import PosedSet
from dune_cli.geometry import epipolar
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import Matcher
from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
from dune_cli.sfm.localization import LocalizationConfig, Query, localize
from dune_cli.sfm.map_queries import is_confident, is_preferred
from dune_cli.sfm.photo_map import MapImage
from dune_cli.sfm.retrieval import Candidates

NEAR_M, NEAR_DEG = 0.25, 2.0
NEAR_SHARE = 0.05  # of the set's extent, where the scale is arbitrary


@dataclass(frozen=True)
class QueryScore:
    """One query against the map of the set `place`.

    other: the set that the query is from, where that is not `place`. rotation_deg, position: errors, the latter in the
    set's unit; infinite without a pose. near: within 2 degrees and `near_distance`. control_*: the same of the pose of
    the map photo with most matches.
    """

    place: str
    query: str
    other: str | None
    success: bool
    rotation_deg: float
    position: float
    near: bool
    control_rotation_deg: float
    control_position: float
    control_near: bool
    matches: int
    inliers: int
    confidence: float
    seconds: float


@dataclass(frozen=True)
class LocalizationSummary:
    """One set, or all: medians over its queries (position_share: of the set's extent) and shares.

    refused: share of the queries from other sets without a pose. seconds: the median a query.
    """

    queries: int
    located: int
    rotation_deg: float
    position: float
    position_share: float
    near: float
    control_rotation_deg: float
    control_position_share: float
    control_near: float
    wrong_queries: int
    refused: float
    seconds: float


def near_distance(posed: PosedSet) -> float:
    """The largest position error that counts as near, in the set's unit."""
    return NEAR_M if posed.metric else NEAR_SHARE * posed.extent


def score_set(
    matcher: Matcher,
    posed: PosedSet,
    others: Sequence[PosedSet],
    config: LocalizationConfig,
    landmark_config: LandmarkConfig | None = None,
    first: Sequence[QueryScore] | None = None,
) -> Iterator[QueryScore]:
    """Scores of each photo of a set in the map of its other photos, then of each photo of `others` in the whole map.

    Cameras are the true ones. Every map photo is matched with every query. `first`: the scores of another matcher, of
    which only those that are not confident are asked for again, and get the scores of both, as `dune reloc --map` has
    it with --matcher auto.
    """
    landmark_config = landmark_config or LandmarkConfig(seed=config.seed)
    landmarks = Landmarks(posed.map, matcher, landmark_config, WorkFolder(None))
    jobs = [(image, index, None) for index, image in enumerate(posed.map.images)]
    jobs += [(image, None, other.name) for other in others for image in other.map.images]
    for (image, left_out, other), quick in zip(jobs, first or [None] * len(jobs), strict=True):
        if quick is not None and is_confident(quick):
            yield quick
            continue
        rest = landmarks if left_out is None else landmarks.without(left_out)
        score = _score_query(image, rest, posed, other, config)
        yield score if quick is None else cascaded(quick, score)


def score_columns(
    columns: Mapping[str, Sequence[Matcher]], posed: PosedSet, others: Sequence[PosedSet], config: LocalizationConfig
) -> dict[str, list[QueryScore]]:
    """`score_set` by each column: a matcher, or the two of a cascade, of which the second is asked by need. What a
    column of its own has scored is not scored again."""
    alone = {members[-1]: name for name, members in columns.items() if len(members) == 1}
    found: dict[str, list[QueryScore]] = {}
    for name, members in sorted(columns.items(), key=lambda column: len(column[1])):
        if len(members) == 1:
            found[name] = list(score_set(members[0], posed, others, config))
            continue
        first, second = members
        quick = found[alone[first]] if first in alone else list(score_set(first, posed, others, config))
        if second in alone:
            found[name] = [
                one if is_confident(one) else cascaded(one, two) for one, two in zip(quick, found[alone[second]])
            ]
        else:
            found[name] = list(score_set(second, posed, others, config, first=quick))
    return {name: found[name] for name in columns}


def cascaded(quick: QueryScore, best: QueryScore) -> QueryScore:
    """The score of a query whose `quick` one by the first matcher is not confident, and whose other one is by the
    second."""
    used = quick if is_preferred(quick, best) else best
    return replace(used, seconds=quick.seconds + best.seconds)


def summarise(scores: Sequence[QueryScore], sets: Sequence[PosedSet]) -> LocalizationSummary:
    """The summary of one matcher's scores at `sets`."""
    extents = {posed.name: posed.extent for posed in sets}
    own = [score for score in scores if score.other is None]
    wrong = [score for score in scores if score.other is not None]
    return LocalizationSummary(
        queries=len(own),
        located=sum(score.success for score in own),
        rotation_deg=median(score.rotation_deg for score in own),
        position=median(score.position for score in own),
        position_share=median(score.position / extents[score.place] for score in own),
        near=mean(score.near for score in own),
        control_rotation_deg=median(score.control_rotation_deg for score in own),
        control_position_share=median(score.control_position / extents[score.place] for score in own),
        control_near=mean(score.control_near for score in own),
        wrong_queries=len(wrong),
        refused=mean(not score.success for score in wrong),
        seconds=median(score.seconds for score in scores),
    )


def _score_query(
    image: MapImage, landmarks: Landmarks, posed: PosedSet, other: str | None, config: LocalizationConfig
) -> QueryScore:
    query = Query(read_photo(image.file), image.camera, "given")
    candidates: Candidates = [(index, None) for index in range(len(landmarks.map.images))]
    for index, _ in candidates:
        landmarks.points(index)  # the time for the map's landmarks is not the query's
    start = time.perf_counter()
    result = localize(query, landmarks, candidates, config)
    seconds = time.perf_counter() - start
    control = landmarks.map.images[int(np.argmax([match.matches for match in result.retrieved]))].world_from_cam
    rotation_deg, position = _errors(None if other else result.world_from_query, image.world_from_cam)
    control_rotation_deg, control_position = _errors(None if other else control, image.world_from_cam)
    return QueryScore(
        place=posed.name,
        query=image.name,
        other=other,
        success=result.success,
        rotation_deg=rotation_deg,
        position=position,
        near=rotation_deg <= NEAR_DEG and position <= near_distance(posed),
        control_rotation_deg=control_rotation_deg,
        control_position=control_position,
        control_near=control_rotation_deg <= NEAR_DEG and control_position <= near_distance(posed),
        matches=result.matches,
        inliers=result.inliers,
        confidence=result.confidence,
        seconds=seconds,
    )


def _errors(estimated: np.ndarray | None, true: np.ndarray) -> tuple[float, float]:
    """Rotation in degrees and distance of the centres; both infinite without a pose."""
    if estimated is None:
        return float("inf"), float("inf")
    rotation = float(np.degrees(epipolar.rotation_error(estimated[:3, :3], true[:3, :3])))
    return rotation, float(np.linalg.norm(estimated[:3, 3] - true[:3, 3]))
