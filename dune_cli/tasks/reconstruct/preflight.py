"""Time, memory and disk that a reconstruction of many photos by matches needs, estimated from a few timed photos and
pairs; what cannot fit is refused."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.sfm.features import FEATURES, MEMORY_BYTES, extract_features
from dune_cli.sfm.matching import MATCHES, match_pairs
from dune_cli.sfm.pairs import EXHAUSTIVE_UP_TO, STRATEGIES, exhaustive_pairs, read_pairs, sequential_pairs
from dune_cli.sfm.retrieval import DESCRIPTORS, DescriptorExtractor
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.matched_photos import uses_descriptors

TIMED_PHOTOS, TIMED_PAIRS = 4, 4
BASE_BYTES = 1_200_000_000  # the libraries and one decoded photo
MAPPING_BYTES_PER_KEYPOINT = 250  # pycolmap's, with tracks
VERIFY_SECONDS, MAP_SECONDS = 0.04, 0.25  # a pair; a photo, and more where there are many (measured with 8 to 60)


@dataclass(frozen=True)
class ReconstructionEstimate:
    """Photos and pairs; how many of each the cache has already; minutes for the rest; bytes of memory and disk that are
    needed and that are available (None: an object store does not say)."""

    photos: int
    pairs: int
    photos_done: int
    seconds_a_photo: float
    seconds_a_pair: float
    minutes: float
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int | None


def preflight(
    paths: Sequence[Path],
    matcher: CacheableMatcher,
    config: MatchesConfig,
    cache: WorkFolder,
    descriptors: Callable[[], DescriptorExtractor | None] | None = None,
) -> ReconstructionEstimate:
    """Extracts the features of a few new photos and matches a few of their pairs, all of which is cached, and
    extrapolates.

    Raises JobFailed when memory or disk cannot hold the run, and whatever the run itself would raise.
    """
    started = time.perf_counter()
    uses = descriptors is not None and uses_descriptors(len(paths), matcher, config)
    retrieval = descriptors() if uses else None
    images = extract_features(paths, matcher, cache, retrieval, limit=TIMED_PHOTOS)
    new_photos = max(cache.counts[FEATURES], cache.counts[DESCRIPTORS], 1)
    seconds_a_photo = (time.perf_counter() - started) / new_photos
    started = time.perf_counter()
    timed_pairs = [(i, j) for i, j in exhaustive_pairs(len(images)) if images[i].key != images[j].key]
    correspondences = match_pairs(images, timed_pairs, matcher, cache, limit=TIMED_PAIRS)
    seconds_a_pair = (time.perf_counter() - started) / max(cache.counts[MATCHES], 1)
    photos, pairs = len(paths), pair_count(paths, config)
    feature_bytes, match_bytes = (mean_bytes(cache.sizes(kind)) for kind in (FEATURES, MATCHES))
    counts = [len(keypoints) for keypoints in correspondences.keypoints if len(keypoints)]
    keypoints = sum(counts) / max(len(counts), 1)
    remaining = max(photos - len(images), 0)
    mapping_seconds = photos * MAP_SECONDS * max(1, photos / 200)
    seconds = remaining * seconds_a_photo + pairs * (seconds_a_pair + VERIFY_SECONDS) + mapping_seconds
    estimate = ReconstructionEstimate(
        photos=photos,
        pairs=pairs,
        photos_done=len(images) - cache.counts[FEATURES],
        seconds_a_photo=round(seconds_a_photo, 3),
        seconds_a_pair=round(seconds_a_pair, 3),
        minutes=round(seconds / 60, 2),
        memory_bytes=int(
            BASE_BYTES
            + min(MEMORY_BYTES, 2 * feature_bytes * photos)
            + photos * keypoints * MAPPING_BYTES_PER_KEYPOINT
            + pairs * match_bytes
        ),
        memory_available_bytes=available_memory(),
        disk_bytes=int(remaining * feature_bytes + pairs * match_bytes),
        disk_free_bytes=None if cache.folder is None else shutil.disk_usage(cache.folder).free,
    )
    _check_fits(estimate, cache)
    return estimate


def mean_bytes(sizes: Sequence[int]) -> float:
    """The mean of the sizes; 0 for none."""
    return sum(sizes) / max(len(sizes), 1)


def pair_count(paths: Sequence[Path], config: MatchesConfig) -> int:
    """The number of pairs that will be matched, at most."""
    count, strategy = len(paths), config.pairs
    exhaustive = count * (count - 1) // 2
    if strategy == "all" or (strategy == "auto" and count <= EXHAUSTIVE_UP_TO):
        return exhaustive
    sequential = len(sequential_pairs(count, config.neighbours))
    if strategy == "sequential":
        return sequential
    if strategy not in STRATEGIES:
        return len(read_pairs(strategy, paths))
    retrieved = min(count * config.neighbours, exhaustive)
    return retrieved + (sequential if strategy == "auto" and config.ordered else 0)


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
