"""Time, memory and disk that a reconstruction of many photos by matches needs, extrapolated from photos of the set that
are reconstructed as the run does it; what cannot fit is refused."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import PhotoInfo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import Run
from dune_cli.sfm.features import FEATURES, MEMORY_BYTES, PHOTOS, extract_features
from dune_cli.sfm.matching import MATCHES
from dune_cli.sfm.pairs import (
    EXHAUSTIVE_UP_TO,
    STRATEGIES,
    Pairs,
    largest_keypoints,
    matching_pairs,
    read_pairs,
    sequential_pairs,
)
from dune_cli.sfm.retrieval import DESCRIPTORS, DescriptorExtractor
from dune_cli.sfm.verification import VerifiedPairs
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig
from dune_cli.tasks.reconstruct.matched_again import ENOUGH_INLIERS, weakly_tied, with_neighbours
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos, largest_match_counts, uses_descriptors
from dune_cli.tasks.reconstruct.matches import WEAK_UP_TO, ManyPhotos, MappedPhotos

SAMPLE = 4, 52  # photos: the fewest; the most, of which the mapper does as with more (TWO_VIEW_TRACKS_UP_TO)
SCOUTED = 500  # photos whose features are extracted to choose the sample, at most
ALIKE = 15  # verified pairs whose largest keypoints match about as well, the median of whose inliers is expected
DISTINCT_PAIRS = 0.6  # of photos times neighbours, as two photos often choose each other: .55 to .61 in six sets
MAPPING_BYTES_PER_KEYPOINT = 1500  # pycolmap's, with tracks, and of calibration: 1,200 and 2,000 in two sets
MAPPING_EXPONENT = 1.3  # of the time of mapping over the photos: 1.0 and 1.1 from 52 to 113 photos, 1.35 to 224
MATCHES_IN_MEMORY = 3  # how many times as large as in the cache: read, in pycolmap's database, and verified
STAGES = {  # of a run, and what their time grows with
    "features": "photos",
    "pair": "selection",
    "match": "pairs",
    "verify": "pairs",
    "rotate": "photos",
    "map": "mapping",
}


@dataclass(frozen=True)
class StageEstimate:
    """Minutes of the clock and of all processors together."""

    minutes: float
    processor_minutes: float


@dataclass(frozen=True)
class ReconstructionEstimate:
    """Photos and pairs, and how many photos the cache has features of; what the `sample_photos` tell, of which
    `sample_placed` got a pose: seconds a photo and a pair, minutes of what is to be computed, in all and by `stages`
    ("again": what a second matcher does for photos that the first one leaves out; "load": reading its weights), without
    depth maps; `photos_again`: how many photos the first matcher ties weakly to the others; bytes of memory and disk
    that are needed and that are available (None: an object store does not say)."""

    photos: int
    pairs: int
    photos_done: int
    sample_photos: int
    sample_placed: int
    photos_again: int
    seconds_a_photo: float
    seconds_a_pair: float
    minutes: float
    processor_minutes: float
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int | None
    stages: dict[str, StageEstimate] = field(default_factory=dict)


@dataclass(frozen=True)
class _CacheBytes:
    """What one photo and pair take in the cache, and what the second matcher took: its descriptors a photo, all else
    in sum; `photos` and `pairs` that it extracted and matched."""

    photo: float
    pair: float
    descriptor: float = 0.0
    again: float = 0.0
    photos: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class _Sample:
    """Photos of the set that were reconstructed. The runs: of the first matcher and of the mapper where it is the only
    one; of the descriptors of all photos that a second matcher needs; of this matcher and the mapper then; of the pairs
    that the scene contradicts. `matched` by the first matcher, of which it ties `weak` photos weakly to the others."""

    photos: int
    matched: MatchedPhotos | None
    mapped: MappedPhotos | None
    run: Run
    described: Run
    again: Run
    checked: Run
    weak: Sequence[int]
    bytes: _CacheBytes
    memory_bytes: int

    @property
    def pairs(self) -> int:
        return 0 if self.matched is None else len(self.matched.pairs)

    @property
    def keypoints(self) -> float:
        """The mean number of a photo's keypoints."""
        held = self.mapped.matched if self.mapped is not None else self.matched
        counts = [] if held is None else [len(k) for k in held.correspondences.keypoints if len(k)]
        return sum(counts) / max(len(counts), 1)


@dataclass(frozen=True)
class _Scouted:
    """Photos that follow each other, from number `start` of all on: how well the largest keypoints of any two match
    (N, N), the pairs to match, and the run."""

    start: int
    counts: np.ndarray
    pairs: Pairs
    run: Run

    def sample_start(self, size: int) -> int:
        """Where `size` photos begin that are tied to others as all of them are: by the distribution of the matches with
        the best two of them, whose distance (Wasserstein's) is the smallest."""
        ties = _ties(self.counts)
        share = np.linspace(0, 1, size + 1)
        wanted = np.quantile(ties, share)
        distance = [
            np.abs(np.quantile(_ties(self.counts[first : first + size, first : first + size]), share) - wanted).mean()
            for first in range(len(ties) - size + 1)
        ]
        return self.start + int(np.argmin(distance))

    def expected_weak(self, sample: _Sample, sample_start: int) -> list[int]:
        """The photos that the second matcher will be asked for. The inliers of a pair are expected to be the
        median of those ALIKE pairs of the sample whose largest keypoints match about as well."""
        assert sample.matched is not None
        verified, first = sample.matched.verified, sample_start - self.start
        known = {
            (i + first, j + first): inliers if (i, j) in verified.geometry else 0
            for (i, j), (_, inliers) in verified.counts.items()
        }
        matches = np.array([self.counts[pair] for pair in known])
        inliers = np.array(list(known.values()))
        expected = {
            value: int(np.median(inliers[np.argsort(np.abs(matches - value), kind="stable")[:ALIKE]]))
            for value in {int(self.counts[pair]) for pair in self.pairs}
        }
        found = {pair: known.get(pair, expected[int(self.counts[pair])]) for pair in self.pairs}
        geometry = {pair: None for pair, count in found.items() if count}
        counts = {pair: (count, count) for pair, count in found.items()}
        return _left_to_second(VerifiedPairs(geometry, counts), len(self.counts))


def _left_to_second(verified: VerifiedPairs, count: int) -> list[int]:
    """The photos that are tied weakly. Where there are too many to be matched again before the first matcher's are
    mapped, those that the mapper would hardly place: it goes from one well tied group to another by weak pairs."""
    weak = weakly_tied(verified, count)
    if len(weak) <= WEAK_UP_TO * count:
        return weak
    connected = set(max(verified.components(count), key=len))
    strong = {index for pair in verified.geometry if verified.counts[pair][1] >= ENOUGH_INLIERS for index in pair}
    held = with_neighbours(strong & connected, verified)
    return [index for index in range(count) if index not in held]


def _ties(counts: np.ndarray) -> np.ndarray:
    """(N,) the matches of each photo with the two others that it has most with."""
    others = counts.copy()
    np.fill_diagonal(others, 0)
    return np.sort(others, axis=1)[:, -2:].sum(axis=1)


def preflight(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    cache: WorkFolder,
    descriptors: Callable[[], DescriptorExtractor | None] | None = None,
    fallback: Callable[[], Matcher] | None = None,
) -> ReconstructionEstimate:
    """Reconstructs photos that follow each other, in a folder of its own, and extrapolates: features and global
    descriptors with the photos, mapping with their power MAPPING_EXPONENT, matching and verification with the pairs,
    the choice of pairs by keypoints with the square of the photos, what the `fallback` does with the photos that are
    tied weakly.

    Where the largest keypoints choose the pairs, those of up to SCOUTED photos are compared before. They tell the pairs
    to match, which photos are like all, and how many the fallback will be asked for. Else the photos in the middle of
    the list are taken.

    Raises JobFailed when memory or disk cannot hold the run, and whatever the run itself would raise.
    """
    count = len(paths)
    size = min(count, max(SAMPLE[0], min(SAMPLE[1], count // 2)))
    start, scouted = (count - size) // 2, None
    loaded = descriptors() if descriptors is not None and uses_descriptors(count, matcher, config) else None
    with scratch_folder() as folder:
        own_cache = WorkFolder(folder)
        if isinstance(matcher, CacheableMatcher):  # not timed: what the first photo loads
            extract_features(paths[:1], matcher, WorkFolder(None), loaded)
        if _chosen_by_keypoints(count, matcher, config):
            scouted = _scout(paths, matcher, config, own_cache)
            start = scouted.sample_start(size)

        def cameras_of_sample(photos: Sequence[PhotoInfo]) -> Sequence[PhotoCamera]:
            cameras = cameras_of(photos)
            return cameras if len(cameras) == len(photos) else cameras[start : start + size]

        job = ManyPhotos(
            paths[start : start + size],
            cameras_of_sample,
            _of_sample(config),
            Run(seed=config.seed),
            own_cache,
            lambda: loaded,
            {},
        )
        sample = _reconstruct(job, matcher, descriptors, fallback)
    pairs, done = pair_count(paths, config), min(count, len(cache.sizes(FEATURES)))
    again, weak = count / size, len(sample.weak) * count / size
    if scouted is not None:
        if len(scouted.counts) == count:
            pairs = len(scouted.pairs)
        if sample.matched is not None and sample.matched.verified.counts:
            weak = len(scouted.expected_weak(sample, start)) * count / len(scouted.counts)
            again = weak / len(sample.weak) if sample.weak else again
    if fallback is not None and 2 * weak > count:
        console.note(
            f"about {weak:.0f} of {count} photos are tied weakly to the others, so the time of mapping is hardly "
            "known: it is tried more than once, and may take several times as long; add photos between those that do "
            "not connect"
        )
    missing, new_pairs = count - done, max(0, pairs - len(cache.sizes(MATCHES)))
    growth = {
        "photos": count / size,
        "pairs": pairs / max(sample.pairs, 1),
        "selection": _selection_growth(count, size, matcher, config),
        "mapping": (count / size) ** MAPPING_EXPONENT,
    }
    growths = {stage: growth[of] for stage, of in STAGES.items()}
    growths["features"], growths["match"] = missing / size, new_pairs / max(sample.pairs, 1)
    stages = {name: _scaled(sample.run, (name,), factor) for name, factor in growths.items()}
    seconds_a_photo = sample.run.seconds.get("features", 0.0) / size
    if scouted is not None:
        number = len(scouted.counts)
        seconds_a_photo = scouted.run.seconds["features"] / number
        stages["features"] = _scaled(scouted.run, ("features",), missing / number)
        stages["pair"] = _scaled(scouted.run, ("pair",), _selection_growth(count, number, matcher, config))
    stages["load"] = _sum(_scaled(sample.described, ("load",), 1), _scaled(sample.again, ("load",), 1))
    stages["again"] = _of_second(sample, count, weak, again, config.neighbours)
    if fallback is not None:
        stages["map"] = _scaled(sample.again, ("map",), growth["mapping"])
    for name in ("verify", "map"):
        stages[name] = _sum(stages[name], _scaled(sample.checked, (name,), growth[STAGES[name]]))
    placed = 0 if sample.mapped is None else len(sample.mapped.placed)
    if not placed:
        del stages["map"]
    kept = min(again, count / max(sample.bytes.photos, 1))  # of what is mostly features of photos
    by_second = count * sample.bytes.descriptor + kept * sample.bytes.again
    estimate = ReconstructionEstimate(
        photos=count,
        pairs=pairs,
        photos_done=done,
        sample_photos=size,
        sample_placed=placed,
        photos_again=0 if fallback is None else round(weak),
        seconds_a_photo=round(seconds_a_photo, 4),
        seconds_a_pair=round(sum(sample.run.seconds.get(s, 0) for s in ("match", "verify")) / max(sample.pairs, 1), 4),
        minutes=round(sum(stage.minutes for stage in stages.values()), 2),
        processor_minutes=round(sum(stage.processor_minutes for stage in stages.values()), 2),
        memory_bytes=_memory(sample, count, pairs, kept),
        memory_available_bytes=available_memory(),
        disk_bytes=int(missing * sample.bytes.photo + new_pairs * sample.bytes.pair + by_second),
        disk_free_bytes=None if cache.folder is None else shutil.disk_usage(cache.folder).free,
        stages={name: stage for name, stage in stages.items() if stage.minutes or stage.processor_minutes},
    )
    _check_fits(estimate, cache)
    return estimate


def _chosen_by_keypoints(count: int, matcher: Matcher, config: MatchesConfig) -> bool:
    """Whether the matches of the largest keypoints choose the pairs of `count` photos."""
    if config.pairs != "auto" or count <= EXHAUSTIVE_UP_TO or not isinstance(matcher, FeatureMatcher):
        return False
    return not uses_descriptors(count, matcher, config)


def _scout(paths: Sequence[Path], matcher: Matcher, config: MatchesConfig, cache: WorkFolder) -> _Scouted:
    """The features of up to SCOUTED photos in the middle of the list, in the `cache`, and their pairs."""
    assert isinstance(matcher, FeatureMatcher)
    start, run = max(0, len(paths) - SCOUTED) // 2, Run(seed=config.seed)
    with run.stage("features"):
        images = extract_features(paths[start : start + SCOUTED], matcher, cache)
    with run.stage("pair"):
        counts = largest_match_counts(images, matcher, cache)
        pairs = set(matching_pairs(counts, config.neighbours))
    if config.ordered:
        pairs.update(sequential_pairs(len(images), config.neighbours))
    return _Scouted(start, counts, sorted(pairs), run)


def _reconstruct(
    job: ManyPhotos,
    matcher: Matcher,
    descriptors: Callable[[], DescriptorExtractor | None] | None,
    fallback: Callable[[], Matcher] | None,
) -> _Sample:
    """The sample, with the steps of a run of more photos. A note says where it is no scene of most of its photos."""
    described, again, checked = (Run(seed=job.config.seed) for _ in range(3))
    paths, cache = job.paths, job.cache
    matched: MatchedPhotos | None = None
    mapped: MappedPhotos | None = None
    weak: list[int] = []
    why = ""
    try:
        first = job.matched(matcher)
        matched, weak = first.matched, _left_to_second(first.matched.verified, len(paths))
        by_first = _sizes(cache)
        if fallback is None:
            mapped = job.calibrated(first)
        else:
            second = replace(job, run=again, descriptors=_described(job, first, weak, descriptors, described))
            mapped = second.mapped_again(first, fallback)
        mapped = replace(job, run=checked).consistent(mapped)
    except JobFailed as error:
        why = f" ({error})"
    placed = 0 if mapped is None else len(mapped.placed)
    if 2 * placed < len(paths):
        console.note(
            f"{placed} of {len(paths)} photos that follow each other, from {paths[0].name} on, got a pose{why}, so "
            "the time of mapping is hardly known: give photos in the order in which they were taken"
        )
    taken = _bytes(_sizes(cache) if matched is None else by_first, _sizes(cache), len(paths))
    return _Sample(len(paths), matched, mapped, job.run, described, again, checked, weak, taken, _peak_memory())


def _described(
    job: ManyPhotos,
    first: MappedPhotos,
    weak: Sequence[int],
    descriptors: Callable[[], DescriptorExtractor | None] | None,
    run: Run,
) -> Callable[[], DescriptorExtractor | None] | None:
    """What loads the extractor of global descriptors for the second matcher. Where `weak` photos will ask for them,
    they are made here, for the `run` to time them alone."""
    if descriptors is None or not weak or job.config.pairs not in ("auto", "retrieval"):
        return descriptors
    with run.stage("load"):
        loaded = descriptors()
    if loaded is not None:
        with run.stage("features"):
            extract_features(job.paths, first.matcher, job.cache, loaded)
    return lambda: loaded


def _sizes(cache: WorkFolder) -> dict[str, list[int]]:
    """The bytes of each entry by kind."""
    return {kind: cache.sizes(kind) for kind in (FEATURES, PHOTOS, DESCRIPTORS, MATCHES)}


def _bytes(first: dict[str, list[int]], both: dict[str, list[int]], photos: int) -> _CacheBytes:
    """Of what lay in the cache after the first matcher and after both, of which the second one had so many photos."""
    of_photos = sum(sum(first[kind]) for kind in (FEATURES, PHOTOS, DESCRIPTORS))
    return _CacheBytes(
        of_photos / max(len(first[FEATURES]), 1),
        sum(first[MATCHES]) / max(len(first[MATCHES]), 1),
        (sum(both[DESCRIPTORS]) - sum(first[DESCRIPTORS])) / photos,
        sum(sum(both[kind]) - sum(first[kind]) for kind in (FEATURES, MATCHES)),
        *(len(both[kind]) - len(first[kind]) for kind in (FEATURES, MATCHES)),
    )


def _of_sample(config: MatchesConfig) -> MatchesConfig:
    """The settings of the sample: a user's list of pairs names other photos as well, and a baseline other cameras."""
    pairs = config.pairs if config.pairs in STRATEGIES else "auto"
    return replace(config, pairs=pairs, baseline=None, dense=None)


def _scaled(run: Run, names: Sequence[str], factor: float) -> StageEstimate:
    """The stages `names` of a run, `factor` times."""
    seconds, processor = (
        factor * sum(times.get(name, 0.0) for name in names) / 60 for times in (run.seconds, run.processor_seconds)
    )
    return StageEstimate(round(seconds, 5), round(processor, 5))


def _sum(one: StageEstimate, other: StageEstimate) -> StageEstimate:
    return StageEstimate(
        round(one.minutes + other.minutes, 5), round(one.processor_minutes + other.processor_minutes, 5)
    )


def _of_second(sample: _Sample, count: int, weak: float, again: float, neighbours: int) -> StageEstimate:
    """What the second matcher does for the `weak` photos, `again` times as many as in the sample. Where these are more
    than half, it matches all photos alone, with the pairs of retrieval."""
    described = _scaled(sample.described, ("features",), count / sample.photos)
    if 2 * weak <= count or not (sample.bytes.photos and sample.bytes.pairs):
        return _sum(described, _scaled(sample.again, [stage for stage in STAGES if stage != "map"], again))
    pairs = min(int(count * neighbours * DISTINCT_PAIRS), count * (count - 1) // 2)
    features = _scaled(sample.again, ("features", "pair", "rotate"), count / sample.bytes.photos)
    return _sum(_sum(described, features), _scaled(sample.again, ("match", "verify"), pairs / sample.bytes.pairs))


def _selection_growth(count: int, sample: int, matcher: Matcher, config: MatchesConfig) -> float:
    """How many times as long as in the sample the choice of pairs takes."""
    by_keypoints = config.pairs == "auto" and isinstance(matcher, FeatureMatcher)
    if not by_keypoints or uses_descriptors(count, matcher, config) or count <= EXHAUSTIVE_UP_TO:
        return count / sample
    compared = largest_keypoints(count) / largest_keypoints(sample)
    return compared**2 * count * (count - 1) / max(sample * (sample - 1), 1)


def _memory(sample: _Sample, count: int, pairs: int, again: float) -> int:
    """What the process held at most for the sample, and what more photos and pairs, and `again` times as many features
    of the second matcher, add."""
    more, more_pairs = count - sample.photos, max(0, pairs - sample.pairs)
    features = [2 * sample.bytes.photo * photos for photos in (sample.photos, count)]  # float32 in memory
    of_second = [2 * sample.bytes.again * times for times in (1, again)]
    held = [sum(min(MEMORY_BYTES, of_matcher) for of_matcher in step) for step in zip(features, of_second)]
    keypoints = more * sample.keypoints * MAPPING_BYTES_PER_KEYPOINT
    return int(sample.memory_bytes + held[1] - held[0] + keypoints + more_pairs * MATCHES_IN_MEMORY * sample.bytes.pair)


def pair_count(paths: Sequence[Path], config: MatchesConfig) -> int:
    """The number of pairs that will be matched, about."""
    count, strategy = len(paths), config.pairs
    exhaustive = count * (count - 1) // 2
    if strategy == "all" or (strategy == "auto" and count <= EXHAUSTIVE_UP_TO):
        return exhaustive
    sequential = len(sequential_pairs(count, config.neighbours))
    if strategy == "sequential":
        return sequential
    if strategy not in STRATEGIES:
        return len(read_pairs(strategy, paths))
    similar = min(int(count * config.neighbours * DISTINCT_PAIRS), exhaustive)
    return min(similar + (sequential if strategy == "auto" and config.ordered else 0), exhaustive)


def _peak_memory() -> int:
    """Bytes that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int:
    """Bytes that new programs can use; all bytes of the machine where the system does not say."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_fits(estimate: ReconstructionEstimate, cache: WorkFolder) -> None:
    if estimate.disk_free_bytes is not None and estimate.disk_bytes > estimate.disk_free_bytes:
        raise JobFailed(
            f"{estimate.photos} photos and {estimate.pairs} pairs need {_gb(estimate.disk_bytes)} in {cache.folder}, "
            f"whose disk has {_gb(estimate.disk_free_bytes)} free; name another disk with --work, or fewer --neighbours"
        )
    if estimate.memory_bytes > estimate.memory_available_bytes:
        raise JobFailed(
            f"{estimate.photos} photos need about {_gb(estimate.memory_bytes)} of memory, and "
            f"{_gb(estimate.memory_available_bytes)} are available; use fewer photos or fewer --neighbours"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
