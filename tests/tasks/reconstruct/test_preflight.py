"""What many photos will take: pairs counted, a few photos timed, and what cannot fit refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dune_cli.errors import JobFailed
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.sift import Sift
from dune_cli.tasks.reconstruct import preflight
from dune_cli.tasks.reconstruct.config import MatchesConfig
from support.many_photos import write


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("photos"), range(6))


def ask(photos: list[Path], work: Path, **settings) -> preflight.ReconstructionEstimate:
    folder = WorkFolder(work)
    return preflight.preflight(photos, Sift(working_size_px=320, max_keypoints=500), MatchesConfig(**settings), folder)


def test_a_few_photos_are_timed_and_kept(photos: list[Path], tmp_path: Path) -> None:
    first = ask(photos, tmp_path / "work")
    assert (first.photos, first.pairs, first.photos_done) == (6, 15, 0)
    assert first.seconds_a_photo > 0 and first.seconds_a_pair > 0 and 0 < first.minutes < 10
    assert first.memory_available_bytes > first.memory_bytes > 1e9
    kept = list((tmp_path / "work" / "features").rglob("*.safetensors"))
    assert len(kept) == preflight.TIMED_PHOTOS
    size = kept[0].stat().st_size
    assert 0.5 * size * 2 < first.disk_bytes < 6 * size * 2 + 15 * 20_000
    assert ask(photos, tmp_path / "work").photos_done == 4


@pytest.mark.parametrize(
    ("count", "settings", "pairs"),
    [
        (20, {}, 190),
        (1000, {}, 10_000),
        (10_000, {"neighbours": 20}, 200_000),
        (1000, {"pairs": "all"}, 499_500),
        (30, {"pairs": "retrieval", "neighbours": 100}, 435),
    ],
)
def test_pairs_are_counted_without_looking(count: int, settings: dict, pairs: int) -> None:
    paths = [Path(f"{i}.jpg") for i in range(count)]
    assert preflight.pair_count(paths, MatchesConfig(**settings)) == pairs


def test_what_cannot_fit_is_refused(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 500_000_000)
    with pytest.raises(JobFailed, match=r"6 photos need about 1\.\d\d GB of memory, and 0\.50 GB are available"):
        ask(photos, tmp_path / "work")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(JobFailed, match=r"6 photos and 15 pairs need .* whose disk has 0\.00 GB free; name another"):
        ask(photos, tmp_path / "work")
