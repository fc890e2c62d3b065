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

from dune_cli import console
from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photos import PhotoInfo
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import Run
from dune_cli.sfm.features import FEATURES, MEMORY_BYTES, extract_features
from dune_cli.sfm.matching import MATCHES
from dune_cli.sfm.pairs import EXHAUSTIVE_UP_TO, STRATEGIES, largest_keypoints, read_pairs, sequential_pairs
from dune_cli.sfm.retrieval import DescriptorExtractor
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig
from dune_cli.tasks.reconstruct.matched_photos import uses_descriptors
from dune_cli.tasks.reconstruct.matches import ManyPhotos, MappedPhotos

SAMPLE = 4, 52  # photos: the fewest; the most, of which the mapper does as with more (TWO_VIEW_TRACKS_UP_TO)
DISTINCT_PAIRS = 0.6  # of photos times neighbours, as two photos often choose each other: .55 to .61 in six sets
MAPPING_BYTES_PER_KEYPOINT = 250  # pycolmap's, with tracks
MAPPING_EXPONENT = 1.3  # of the time of mapping over the photos: 1.36 from 52 to 224 photos of a bedroom
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
    ("again": what a second matcher does for photos that the first one leaves out), without depth maps; bytes of memory
    and disk that are needed and that are available (None: an object store does not say)."""

    photos: int
    pairs: int
    photos_done: int
    sample_photos: int
    sample_placed: int
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
class _Sample:
    """Photos of the set that were reconstructed: their `run` and that of the fallback, and what lies in their cache."""

    photos: int
    mapped: MappedPhotos | None
    run: Run
    again: Run
    feature_bytes: float
    match_bytes: float
    memory_bytes: int

    @property
    def pairs(self) -> int:
        return 0 if self.mapped is None else len(self.mapped.matched.pairs)

    @property
    def keypoints(self) -> float:
        """The mean number of a photo's keypoints."""
        counts = (
            [] if self.mapped is None else [len(k) for k in self.mapped.matched.correspondences.keypoints if len(k)]
        )
        return sum(counts) / max(len(counts), 1)


def preflight(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    cache: WorkFolder,
    descriptors: Callable[[], DescriptorExtractor | None] | None = None,
    fallback: Callable[[], Matcher] | None = None,
) -> ReconstructionEstimate:
    """Reconstructs photos that follow each other in the middle of the list, in a folder of its own, and extrapolates:
    features and what the `fallback` does with the photos, mapping with their power MAPPING_EXPONENT, matching and
    verification with the pairs, the choice of pairs by keypoints with the square of the photos.

    Raises JobFailed when memory or disk cannot hold the run, and whatever the run itself would raise.
    """
    count = len(paths)
    size = min(count, max(SAMPLE[0], min(SAMPLE[1], count // 2)))
    start = (count - size) // 2

    def cameras_of_sample(photos: Sequence[PhotoInfo]) -> Sequence[PhotoCamera]:
        cameras = cameras_of(photos)
        return cameras if len(cameras) == len(photos) else cameras[start : start + size]

    sample = _reconstruct(paths[start : start + size], count, cameras_of_sample, matcher, config, descriptors, fallback)
    pairs, done = pair_count(paths, config), min(count, len(cache.sizes(FEATURES)))
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
    stages["again"] = _scaled(sample.again, tuple(STAGES)[:-1], count / size)
    if fallback is not None:
        stages["map"] = _scaled(sample.again, ("map",), growth["mapping"])
    estimate = ReconstructionEstimate(
        photos=count,
        pairs=pairs,
        photos_done=done,
        sample_photos=size,
        sample_placed=0 if sample.mapped is None else len(sample.mapped.placed),
        seconds_a_photo=round(sample.run.seconds["features"] / size, 4),
        seconds_a_pair=round(sum(sample.run.seconds.get(s, 0) for s in ("match", "verify")) / max(sample.pairs, 1), 4),
        minutes=round(sum(stage.minutes for stage in stages.values()), 2),
        processor_minutes=round(sum(stage.processor_minutes for stage in stages.values()), 2),
        memory_bytes=_memory(sample, count, pairs),
        memory_available_bytes=available_memory(),
        disk_bytes=int(missing * sample.feature_bytes + new_pairs * sample.match_bytes),
        disk_free_bytes=None if cache.folder is None else shutil.disk_usage(cache.folder).free,
        stages={name: stage for name, stage in stages.items() if stage.minutes or stage.processor_minutes},
    )
    _check_fits(estimate, cache)
    return estimate


def _reconstruct(
    paths: Sequence[Path],
    count: int,
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    descriptors: Callable[[], DescriptorExtractor | None] | None,
    fallback: Callable[[], Matcher] | None,
) -> _Sample:
    """The sample, with the steps of a run of `count` photos. A note says where it is no scene of most of its photos."""
    run, again = Run(seed=config.seed), Run(seed=config.seed)
    settings = _of_sample(config)
    loaded = descriptors() if descriptors is not None and uses_descriptors(count, matcher, config) else None
    with scratch_folder() as folder:
        cache = WorkFolder(folder)
        if isinstance(matcher, CacheableMatcher):  # not timed: what the first photo loads
            extract_features(paths[:1], matcher, WorkFolder(None), loaded)
        job = ManyPhotos(paths, cameras_of, settings, run, cache, lambda: loaded, {})
        mapped, why = None, ""
        try:
            if fallback is None:
                mapped = job.mapped(matcher)
            else:
                mapped = replace(job, run=again, descriptors=descriptors).mapped_again(job.matched(matcher), fallback)
        except JobFailed as error:
            why = f" ({error})"
        placed = 0 if mapped is None else len(mapped.placed)
        if 2 * placed < len(paths):
            console.note(
                f"{placed} of {len(paths)} photos that follow each other, from {paths[0].name} on, got a pose{why}, so "
                "the time of mapping is hardly known: give photos in the order in which they were taken"
            )
        sizes = [sum(of) / max(len(of), 1) for of in (cache.sizes(FEATURES), cache.sizes(MATCHES))]
    return _Sample(len(paths), mapped, run, again, *sizes, _peak_memory())


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


def _selection_growth(count: int, sample: int, matcher: Matcher, config: MatchesConfig) -> float:
    """How many times as long as in the sample the choice of pairs takes."""
    by_keypoints = config.pairs == "auto" and isinstance(matcher, FeatureMatcher)
    if not by_keypoints or uses_descriptors(count, matcher, config) or count <= EXHAUSTIVE_UP_TO:
        return count / sample
    compared = largest_keypoints(count) / largest_keypoints(sample)
    return compared**2 * count * (count - 1) / max(sample * (sample - 1), 1)


def _memory(sample: _Sample, count: int, pairs: int) -> int:
    """What the process held at most for the sample, and what more photos and pairs add."""
    more, more_pairs = count - sample.photos, max(0, pairs - sample.pairs)
    held = [min(MEMORY_BYTES, 2 * sample.feature_bytes * photos) for photos in (sample.photos, count)]
    keypoints = more * sample.keypoints * MAPPING_BYTES_PER_KEYPOINT
    return int(
        sample.memory_bytes + held[1] - held[0] + keypoints + more_pairs * MATCHES_IN_MEMORY * sample.match_bytes
    )


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
