"""What many photos will take: pairs counted, some photos reconstructed, and what cannot fit refused."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.photos import PhotoInfo
from dune_cli.matchers.sift import Sift
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.verification import VerifiedPairs
from dune_cli.tasks.reconstruct import preflight
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.matched_again import weakly_tied
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos
from support.many_photos import INTRINSICS, write


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("photos"), range(6))


def cameras_of(infos: Sequence[PhotoInfo]) -> list[PhotoCamera]:
    """Those of all photos, whichever are asked for, as of given intrinsics."""
    return resolve_cameras([replace(infos[0]) for _ in range(6)], INTRINSICS, None)


def ask(photos: list[Path], work: Path, **settings) -> preflight.ReconstructionEstimate:
    matcher = Sift(working_size_px=320, max_keypoints=500)
    return preflight.preflight(photos, cameras_of, matcher, MatchesConfig(**settings), WorkFolder(work))


def test_some_photos_are_reconstructed(photos: list[Path], tmp_path: Path) -> None:
    first = ask(photos, tmp_path / "work")
    assert (first.photos, first.pairs, first.photos_done, first.sample_photos) == (6, 15, 0, 4)
    assert first.sample_placed >= 3 and not list((tmp_path / "work").rglob("*.safetensors"))
    assert first.seconds_a_photo > 0 and first.seconds_a_pair > 0 and 0 < first.processor_minutes < 10
    assert {"features", "match", "verify", "map"} <= first.stages.keys() <= {*preflight.STAGES, "again", "load"}
    assert first.minutes == pytest.approx(sum(stage.minutes for stage in first.stages.values()), abs=0.02)
    cache = WorkFolder(tmp_path / "work")
    images = extract_features(photos[:3], Sift(working_size_px=320, max_keypoints=500), cache)
    assert first.disk_bytes == pytest.approx(2 * sum(cache.sizes("features")) + 15 * 2500, rel=0.5) and len(images) == 3
    second = ask(photos, tmp_path / "work")
    assert second.photos_done == 3 and second.disk_bytes < 0.8 * first.disk_bytes


def test_photos_of_different_places_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(strange):
        pixels = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    estimate = ask(strange, tmp_path / "work")
    assert estimate.sample_placed == 0 and "map" not in estimate.stages
    assert "0 of 4 photos that follow each other, from 1.png on, got a pose" in capsys.readouterr().err


def walk(weak: Collection[int], photos: int = 60) -> np.ndarray:
    """How well the largest keypoints of any two photos of a walk match, of which those of `weak` photos hardly do."""
    place = np.arange(photos)
    counts = np.maximum(80 - 10 * np.abs(place[:, None] - place), 5)
    counts[np.isin(place, list(weak))] //= 8
    counts[:, np.isin(place, list(weak))] //= 8
    return counts


def scouted_walk(weak: Collection[int]) -> preflight._Scouted:
    counts = walk(weak)
    return preflight._Scouted(0, counts, [(i, j) for i in range(60) for j in range(i + 1, min(i + 6, 60))], Run())


def test_the_sample_has_photos_like_all() -> None:
    for weak in (range(4, 10), range(50, 56)):  # 6 of 60, of which a sample of 30 photos has 3 at best
        start = scouted_walk(weak).sample_start(30)
        assert 2 <= len(set(range(start, start + 30)) & set(weak)) <= 4
    assert replace(scouted_walk([]), start=100).sample_start(60) == 100


def test_the_photos_that_the_second_matcher_will_match_are_expected_from_the_largest_keypoints() -> None:
    weak = [20, 21, 22, 44, 45, 46]
    scouted, first = scouted_walk(weak), 8  # 30 photos of the sample, with three weak ones

    def inliers(pair: tuple[int, int]) -> int:
        found = int(scouted.counts[pair]) * 3 // 2
        return found if found >= 15 else 0

    within = [pair for pair in scouted.pairs if first <= pair[0] and pair[1] < first + 30]
    counts = {(i - first, j - first): (2 * inliers((i, j)), inliers((i, j))) for i, j in within}
    verified = VerifiedPairs({pair: None for pair, (_, count) in counts.items() if count}, counts)
    matched = MatchedPhotos((), (), PhotoCameras((), ()), {}, list(counts), Correspondences((), (), (), {}), verified)
    sample = preflight._Sample(30, matched, None, Run(), Run(), Run(), Run(), [], preflight._CacheBytes(0, 0), 0)
    true = {pair: inliers(pair) for pair in scouted.pairs}
    every = VerifiedPairs({pair: None for pair, n in true.items() if n}, {pair: (n, n) for pair, n in true.items()})
    assert scouted.expected_weak(sample, first) == weakly_tied(every, 60) == weak


def test_well_tied_groups_that_weak_pairs_connect_are_left_to_the_mapper() -> None:
    inliers = {(i, i + 1): 20 if i == 9 else 99 for i in range(19)} | {(18, 20): 20}  # two groups of ten, and photo 20
    verified = VerifiedPairs(dict.fromkeys(inliers), {pair: (n, n) for pair, n in inliers.items()})
    assert weakly_tied(verified, 21) == list(range(10, 21))
    assert preflight._left_to_second(verified, 21) == [20]
    apart = verified.without({(9, 10)})  # the larger group has photo 20
    assert preflight._left_to_second(apart, 21) == [*range(10), 20]


@pytest.mark.parametrize(
    ("count", "settings", "pairs"),
    [
        (20, {}, 190),
        (1000, {}, 6000),
        (10_000, {"neighbours": 20}, 120_000),
        (1000, {"pairs": "all"}, 499_500),
        (30, {"pairs": "retrieval", "neighbours": 100}, 435),
    ],
)
def test_pairs_are_counted_without_looking(count: int, settings: dict, pairs: int) -> None:
    paths = [Path(f"{i}.jpg") for i in range(count)]
    assert preflight.pair_count(paths, MatchesConfig(**settings)) == pairs


def test_what_cannot_fit_is_refused(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 50_000_000)
    with pytest.raises(JobFailed, match=r"6 photos need about \d\.\d\d GB of memory, and 0\.05 GB are available"):
        ask(photos, tmp_path / "work")
    usage = shutil.disk_usage(tmp_path)

    def of_two_disks(path: Path) -> Any:  # that of the work folder is full, that of temporary files is not
        return usage._replace(free=1000) if Path(path).is_relative_to(tmp_path) else usage

    monkeypatch.setattr(preflight.shutil, "disk_usage", of_two_disks)
    with pytest.raises(JobFailed, match=r"6 photos and 15 pairs need .* whose disk has 0\.00 GB free; name another"):
        ask(photos, tmp_path / "work")
