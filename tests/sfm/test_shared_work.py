"""Features and matches by the workers of an engine: the files of one process, byte for byte."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.engine import Engine, InProcess, ProcessPool
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.matching import Correspondences, match_pairs
from dune_cli.sfm.pairs import exhaustive_pairs
from dune_cli.sfm.shared_work import SharedWork
from support.many_photos import write


def sift() -> Sift:
    matcher = Sift(320, 1500)
    matcher.reload = partial(Sift, 320, 1500)
    return matcher


def matched(paths: list[Path], cache: WorkFolder) -> Correspondences:
    return match_pairs(extract_features(paths, sift(), cache), exhaustive_pairs(len(paths)), sift(), cache)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_one_process(tmp_path: Path) -> None:
    paths = write(tmp_path / "photos", range(4))
    one = WorkFolder(tmp_path / "one")
    expected = matched(paths, one)
    engines: dict[str, Engine] = {"here": InProcess(), "two": ProcessPool(2)}
    for name, engine in engines.items():
        shared = SharedWork(tmp_path / name, engine)
        found = matched(paths, shared)
        assert files(tmp_path / name) == files(tmp_path / "one"), name
        assert {kind: shared.counts[kind] for kind in ("photos", "features", "matches")} == dict(
            zip(("photos", "features", "matches"), (4, 4, 6))
        )
        assert found.matches.keys() == expected.matches.keys()
        for pair, indices in expected.matches.items():
            np.testing.assert_array_equal(found.matches[pair], indices)
    # what is there is not computed again
    again = SharedWork(tmp_path / "one", ProcessPool(2))
    matched(paths, again)
    assert not any(again.counts[kind] for kind in ("photos", "features", "matches"))
