"""What a reconstruction of many photos will take, from a few timed photos and pairs; a refusal of what cannot fit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.sfm import pairs as pairing
from dune_cli.sfm.features import FEATURES, MEMORY_BYTES, extract_features
from dune_cli.sfm.matching import MATCHES, match_pairs
from dune_cli.sfm.retrieval import DESCRIPTORS, DescriptorExtractor
from dune_cli.tasks.reconstruct.many import ManyConfig, wants_descriptors

PHOTOS, PAIRS = 4, 4  # that are timed
BASE_BYTES = 1_200_000_000  # the libraries and one photo at work
MAPPING_BYTES_A_KEYPOINT = 250  # pycolmap's, with tracks
VERIFY_SECONDS, MAP_SECONDS = 0.04, 0.25  # a pair; a photo, and more where there are many (measured with 8 to 60)


@dataclass(frozen=True)
class ReconstructionEstimate:
    """Photos and pairs; how many of each the work folder has already; minutes for what is left; bytes of memory and
    disk that will be needed and that are there."""

    photos: int
    pairs: int
    photos_done: int
    seconds_a_photo: float
    seconds_a_pair: float
    minutes: float
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int


def preflight(
    paths: Sequence[Path],
    matcher: CacheableMatcher,
    config: ManyConfig,
    work: WorkFolder,
    describer: DescriptorExtractor | None = None,
) -> ReconstructionEstimate:
    """Looks at a few photos that are new, matches a few of their pairs (all of which is kept), and scales that up.

    Raises JobFailed when memory or disk cannot hold the run, and whatever the run itself would raise.
    """
    wants = wants_descriptors(len(paths), config)
    started = time.perf_counter()
    looks = extract_features(paths, matcher, work, describer if wants else None, limit=PHOTOS)
    new = max(work.counts[FEATURES], work.counts[DESCRIPTORS], 1)
    photo_seconds = (time.perf_counter() - started) / new
    started = time.perf_counter()
    some = [(i, j) for i, j in pairing.exhaustive_pairs(len(looks)) if looks[i].key != looks[j].key]
    found = match_pairs(looks, some, matcher, work, limit=PAIRS)
    pair_seconds = (time.perf_counter() - started) / max(work.counts[MATCHES], 1)
    count, pairs = len(paths), pair_count(paths, config)
    done = len(looks) - work.counts[FEATURES]
    feature_bytes = work.bytes_of(FEATURES) / max(len(work.entries(FEATURES)), 1)
    match_bytes = work.bytes_of(MATCHES) / max(len(work.entries(MATCHES)), 1)
    keypoints = sum(map(len, found.keypoints)) / max(sum(1 for k in found.keypoints if len(k)), 1)
    left = max(count - len(looks), 0)
    seconds = left * photo_seconds + pairs * (pair_seconds + VERIFY_SECONDS) + count * MAP_SECONDS * max(1, count / 200)
    estimate = ReconstructionEstimate(
        photos=count,
        pairs=pairs,
        photos_done=done,
        seconds_a_photo=round(photo_seconds, 3),
        seconds_a_pair=round(pair_seconds, 3),
        minutes=round(seconds / 60, 2),
        memory_bytes=int(
            BASE_BYTES
            + min(MEMORY_BYTES, 2 * feature_bytes * count)
            + count * keypoints * MAPPING_BYTES_A_KEYPOINT
            + pairs * match_bytes
        ),
        memory_available_bytes=available_memory(),
        disk_bytes=int(left * feature_bytes + pairs * match_bytes),
        disk_free_bytes=shutil.disk_usage(work.folder).free,
    )
    _refuse(estimate, work)
    return estimate


def pair_count(paths: Sequence[Path], config: ManyConfig) -> int:
    """How many pairs there will be, at most."""
    count, way = len(paths), config.pairs
    if way == "all" or (way == "auto" and count <= pairing.EXHAUSTIVE_UP_TO):
        return count * (count - 1) // 2
    sequential = len(pairing.sequential_pairs(count, config.neighbours))
    if way == "sequential":
        return sequential
    if way not in pairing.STRATEGIES:
        return len(pairing.read_pairs(way, paths))
    retrieved = min(count * config.neighbours, count * (count - 1) // 2)
    return retrieved + (sequential if way == "auto" and config.ordered else 0)


def available_memory() -> int:
    """Bytes that programs can still have; where the system does not say, all that there is."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _refuse(estimate: ReconstructionEstimate, work: WorkFolder) -> None:
    if estimate.disk_bytes > estimate.disk_free_bytes:
        raise JobFailed(
            f"{estimate.photos} photos and {estimate.pairs} pairs need {_gb(estimate.disk_bytes)} in {work.folder}, "
            f"whose disk has {_gb(estimate.disk_free_bytes)} free; name another disk with --work, or fewer --neighbours"
        )
    if estimate.memory_bytes > estimate.memory_available_bytes:
        raise JobFailed(
            f"{estimate.photos} photos need about {_gb(estimate.memory_bytes)} of memory, "
            f"{_gb(estimate.memory_available_bytes)} are there; use fewer photos or fewer --neighbours"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
