"""Localization of many queries in a map: photos in batches, the frames of a sequence in segments, which are the jobs of
an engine.

What a query gets depends on its own batch or segment alone, so every engine gives the same poses. The frames of a
segment are a chain: one after the other, each with what the frames before it tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.geometry.trajectory_outliers import MIN_POSES, trajectory_outliers
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.photos import Photo, read_photo
from dune_cli.matchers.matcher import Matcher
from dune_cli.provenance import Source
from dune_cli.sfm.engine import Engine
from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
from dune_cli.sfm.localization import LocalizationConfig, LocalizationResult, Query, failed_localization, localize
from dune_cli.sfm.panorama_queries import localize_panorama
from dune_cli.sfm.photo_map import PhotoMap
from dune_cli.sfm.retrieval import Candidates, ImageRetriever

if TYPE_CHECKING:
    from torch import nn

BATCH = 8  # photos whose retrieval is one pass of the encoder
SEGMENT = 32  # frames of a sequence that are localized one after the other
HELD_BYTES = 256_000_000  # of decoded photos of a batch; the others are decoded again
PRIOR_FRAMES = 2  # localized frames before a frame, whose map photos are among its candidates
PRIOR_PHOTOS = 3  # of each of them: those with most inliers
PRIOR_RETRIEVED = 2  # of the photos most like a frame, beside these, after a CONFIDENT frame
CONFIDENT = 0.8  # a pose of the first matcher, from which on the fallback is not asked


@dataclass(frozen=True)
class QueryPhoto:
    """A photo to be localized: its file and what is known of its camera. A frame of a sequence has the number `frame`
    there; `video` is the sequence's file, or the folder of its photos."""

    path: Path
    intrinsics: str | None = None
    fov_deg: float | None = None
    video: Path | None = None
    frame: int = 0


@dataclass(frozen=True)
class QueryBatch:
    """Consecutive queries that one worker localizes: at most BATCH photos, or SEGMENT frames of a sequence. `skip`: the
    results of so many at its beginning are not needed."""

    queries: tuple[QueryPhoto, ...]
    skip: int = 0

    @property
    def is_sequence(self) -> bool:
        return self.queries[0].video is not None


@dataclass(frozen=True)
class LocatedQuery:
    """The result of a query, without its map (None there), which would go from process to process with each; `of` adds
    it. `sha256` of the photo, None where it could not be read. `seconds` that it took, less what is done for a batch:
    retrieval, and features by several threads.
    `consistent`: of a frame, whether its pose fits the motion of the frames beside it; None where that is not known."""

    result: LocalizationResult
    sha256: str | None
    sources: tuple[Source, ...]
    seconds: float
    consistent: bool | None = None

    def of(self, photo_map: PhotoMap) -> LocalizationResult:
        """The result in its map."""
        return replace(self.result, map=photo_map)


def batches(queries: Sequence[QueryPhoto], done: int = 0) -> list[QueryBatch]:
    """The queries in batches, without results of the first `done` queries. The batches do not depend on `done`."""
    found, start = [], 0
    while start < len(queries):
        video, end = queries[start].video, start + 1
        length = BATCH if video is None else SEGMENT
        while end < len(queries) and end - start < length and queries[end].video == video:
            end += 1
        if end > done:
            found.append(QueryBatch(tuple(queries[start:end]), max(0, done - start)))
        start = end
    return found


@dataclass(frozen=True)
class LocalizationJobs:
    """For an engine: localizes the queries of a `QueryBatch` in a map, each with `neighbours` of its photos. `work` is
    the folder or URL of the cache; with None nothing is kept. `load_fallback` loads a second matcher, for queries that
    the first one does not localize with CONFIDENT."""

    photo_map: PhotoMap
    load_matcher: Callable[[], Matcher]
    load_encoder: Callable[[], nn.Module]
    neighbours: int
    work: Path | str | None
    landmarks: LandmarkConfig
    config: LocalizationConfig
    load_fallback: Callable[[], Matcher] | None = None

    def __call__(self) -> Callable[[QueryBatch], Iterator[LocatedQuery]]:
        fallback = None if self.load_fallback is None else partial(self._open, self.load_fallback)
        return MapLocalizer(self.open_landmarks(), self.open_retriever(), self.config, fallback).localize

    def open_landmarks(self) -> Landmarks:
        """The map's landmarks."""
        return self._open(self.load_matcher)

    def _open(self, load_matcher: Callable[[], Matcher]) -> Landmarks:
        return Landmarks(self.photo_map, load_matcher(), self.landmarks, WorkFolder(self.work))

    def open_retriever(self) -> ImageRetriever:
        """What chooses photos of the map."""
        return ImageRetriever(self.photo_map, self.neighbours, self.load_encoder, WorkFolder(self.work))


@dataclass(frozen=True)
class LandmarkJobs:
    """For an engine: computes ("features", index) or ("points", index) of a map image, into the cache of `jobs`."""

    jobs: LocalizationJobs

    def __call__(self) -> Callable[[tuple[str, int]], Sequence[int]]:
        landmarks = self.jobs.open_landmarks()

        def make(item: tuple[str, int]) -> Sequence[int]:
            kind, index = item
            (landmarks.features if kind == "features" else landmarks.points)(index)
            return (index,)

        return make


def prepare_map(jobs: LocalizationJobs, engine: Engine, queries: int) -> None:
    """Computes into the cache what each of several workers would else compute for itself: the map's descriptors, and
    its landmarks where so many `queries` need nearly all of them."""
    images = len(jobs.photo_map.images)
    if jobs.work is None:
        return
    retriever = jobs.open_retriever()
    if not retriever.takes_all:
        retriever.load()
    if queries * min(jobs.neighbours, images) < images:
        return
    landmarks = jobs.open_landmarks()
    missing = [index for index in range(images) if not landmarks.has_points(index)]
    # features first: several photos' points need them
    items = [("features", index) for index in missing if not landmarks.has_features(index)]
    items += [("points", index) for index in missing]
    if items:
        for _ in console.progress(engine.map(LandmarkJobs(jobs), items), "map", len(items), "job"):
            pass


class MapLocalizer:
    """Localizes batches of queries. `open_fallback` opens the landmarks of a second matcher, which are needed for
    queries that the first one does not localize with CONFIDENT."""

    def __init__(
        self,
        landmarks: Landmarks,
        retriever: ImageRetriever,
        config: LocalizationConfig,
        open_fallback: Callable[[], Landmarks] | None = None,
    ) -> None:
        self.landmarks, self.retriever, self.config = landmarks, retriever, config
        self._open_fallback = open_fallback

    @cached_property
    def fallback(self) -> Landmarks | None:
        """The landmarks of the second matcher, if there is one."""
        return None if self._open_fallback is None else self._open_fallback()

    def localize(self, batch: QueryBatch) -> Iterator[LocatedQuery]:
        """The results in the order of the queries; an error of a query itself is a failed pose. Those of photos one
        after the other, those of frames all at the end of the segment."""
        if batch.is_sequence:
            yield from self._localize_frames(batch)[batch.skip :]
            return
        for number, (query, candidates, photo) in enumerate(self._with_candidates(batch.queries)):
            if number >= batch.skip:
                yield self._localize(query, [candidates], photo)

    def _localize_frames(self, batch: QueryBatch) -> list[LocatedQuery]:
        found: list[LocatedQuery] = []
        for start in range(0, len(batch.queries), BATCH):
            for query, candidates, photo in self._with_candidates(batch.queries[start : start + BATCH]):
                stages = self._with_prior(candidates, [located.result for located in found])
                found.append(self._localize(query, stages, photo))
        return _with_consistency(batch.queries, found)

    def _with_prior(self, candidates: Candidates, before: Sequence[LocalizationResult]) -> list[Candidates]:
        """The candidates of a frame with the photos that localized the frames `before` it. After a confident frame
        these photos and those most like the frame come first, alone."""
        localized = [result for result in before if result.success][-PRIOR_FRAMES:]
        prior = [self._index_of[name] for result in reversed(localized) for name in _most_inliers(result)]
        known = {index for index, _ in candidates}
        together = [*candidates, *((index, None) for index in dict.fromkeys(prior) if index not in known)]
        if not before or not is_confident(before[-1]):
            return [together]
        alike = [index for index, similarity in candidates if similarity is not None][:PRIOR_RETRIEVED]
        likely = {*prior, *alike}
        first = [candidate for candidate in together if candidate[0] in likely]
        return [together] if len(first) == len(together) else [first, together]

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {image.name: index for index, image in enumerate(self.landmarks.map.images)}

    def _with_candidates(self, queries: Sequence[QueryPhoto]) -> Iterator[tuple[QueryPhoto, Candidates, Photo | None]]:
        """Each query with the map images to match it with, and its photo where that is held in memory."""
        if self.retriever.takes_all:
            every: Candidates = [(index, None) for index in range(len(self.landmarks.map.images))]
            yield from ((query, every, None) for query in queries)
            return
        held: dict[int, Photo] = {}
        prepared: dict[int, np.ndarray] = {}
        left = HELD_BYTES
        for number, query in enumerate(queries):
            try:
                photo = read_photo(query.path)
            except UserError:
                continue  # `_localize` says why
            prepared[number] = self.retriever.prepare(photo.rgb)
            left -= photo.rgb.nbytes
            if left >= 0 or number == 0:
                held[number] = photo
        found = dict(zip(prepared, self.retriever.retrieve_prepared(list(prepared.values())))) if prepared else {}
        extracted = self.landmarks.extracted(list(held.values()))
        for number, query in enumerate(queries):
            yield query, found.get(number, []), next(extracted) if number in held else None

    def _localize(self, query: QueryPhoto, stages: Sequence[Candidates], photo: Photo | None) -> LocatedQuery:
        start, used = time.perf_counter(), self.landmarks
        try:
            photo = photo or read_photo(query.path)
            own = resolve_cameras([photo], query.intrinsics, query.fov_deg, panoramas=True)[0]
        except UserError as error:
            result, sha256 = failed_localization(str(query.path), self.landmarks.map, str(error)), None
        else:
            result, used = self._by_cascade(photo, own, stages)
            sha256 = photo.sha256
        encoder = self.retriever.encoder
        sources = [used.matcher.source, *([] if encoder is None else [encoder.source])]
        seconds = time.perf_counter() - start
        return LocatedQuery(replace(result, map=None), sha256, tuple(sources), seconds)  # type: ignore[arg-type]

    def _by_cascade(
        self, photo: Photo, own: PhotoCamera, stages: Sequence[Candidates]
    ) -> tuple[LocalizationResult, Landmarks]:
        """The first CONFIDENT result, else the most confident one, and the landmarks that gave it: by the first
        matcher, with the candidates of each stage, then by the second one."""
        best: tuple[LocalizationResult, Landmarks] | None = None
        stages = stages[-1:] if own.camera.is_panorama else stages  # its views have candidates of their own
        for landmarks in self._matched():
            for number, candidates in enumerate(stages, start=1):
                result = self._localize_photo(photo, own, candidates, landmarks, number < len(stages))
                if best is None or not is_preferred(best[0], result):
                    best = result, landmarks
                if is_confident(result):
                    return best
        assert best is not None, "there is a first matcher, and a stage"
        return best

    def _matched(self) -> Iterator[Landmarks]:
        """The landmarks of one matcher after the other."""
        yield self.landmarks
        if self.fallback is not None:
            yield self.fallback

    def _localize_photo(
        self, photo: Photo, own: PhotoCamera, candidates: Candidates, landmarks: Landmarks, upright_only: bool
    ) -> LocalizationResult:
        """A photo that says nothing of its camera, and has the size of the map's photos, is first tried with theirs. A
        panorama is localized by its views."""
        if own.camera.is_panorama:
            retrieve = None if self.retriever.takes_all else self.retriever.retrieve
            return localize_panorama(photo, own.camera, landmarks, candidates, self.config, retrieve)

        def localized(query: Query) -> LocalizationResult:
            return localize(query, landmarks, candidates, self.config, self.retriever.retrieve, upright_only)

        query = Query(photo, own.camera, own.source)
        of_map = self.landmarks.map.camera_of_size(photo.width, photo.height)
        if of_map is not None and own.source == "given" and not own.lens_known and own.camera.is_like(of_map):
            console.note_once(
                f"the intrinsics of {photo.path.name} say nothing of its lens and are those of the map's photos: their "
                f"lens is taken ({of_map.model}); give PINHOLE,FX,FY,CX,CY for a photo without distortion",
                "lenses of queries",
            )
            query = Query(photo, own.camera.with_lens_of(of_map), own.source)
        if of_map is not None and own.source == "default":
            result = localized(Query(photo, of_map, "map"))
            if result.success:
                console.note_once(
                    f"{photo.path.name} says nothing of its camera and has the size of the map's photos: their camera "
                    f"is taken ({of_map.model}); give --intrinsics or --fov-deg if another one took it",
                    "cameras of queries",
                )
                return result
        return localized(query)


class Localized(Protocol):
    """What the cascade compares: whether there is a pose, and its confidence."""

    @property
    def success(self) -> bool: ...

    @property
    def confidence(self) -> float: ...


def is_confident(first: Localized) -> bool:
    """Whether the first matcher's result is enough, and the fallback is not asked."""
    return first.success and first.confidence >= CONFIDENT


def is_preferred(first: Localized, second: Localized) -> bool:
    """Whether the first matcher's result counts, and not that of the fallback: the more confident pose."""
    return first.success and (not second.success or first.confidence > second.confidence)


def _most_inliers(result: LocalizationResult) -> list[str]:
    """The names of the map photos that localized a query, those with most inliers first."""
    used = sorted((image for image in result.retrieved if image.inliers), key=lambda image: -image.inliers)
    return [image.name for image in used[:PRIOR_PHOTOS]]


def _with_consistency(queries: Sequence[QueryPhoto], found: Sequence[LocatedQuery]) -> list[LocatedQuery]:
    """The frames with `consistent`, where enough of them have a pose."""
    posed = [number for number, located in enumerate(found) if located.result.success]
    if len(posed) < MIN_POSES:
        return list(found)
    results = [found[number].result for number in posed]
    outliers = trajectory_outliers(
        np.array([queries[number].frame for number in posed]),
        np.stack([result.world_from_query for result in results]),
        np.array([np.linalg.norm(result.position_std) for result in results]),
    )
    flagged = dict(zip(posed, outliers.tolist()))
    return [
        replace(located, consistent=not flagged[number]) if number in flagged else located
        for number, located in enumerate(found)
    ]
