"""A work folder in an object store: the files of one on the disk, byte for byte, and the same rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dune_cli.errors import PackageMissing, UserError
from dune_cli.io import work_objects
from dune_cli.io.cache import WorkFolder, key_of, open_work
from dune_cli.matchers.sift import Sift
from dune_cli.sfm.engine import InProcess
from dune_cli.sfm.features import extract_features
from dune_cli.sfm.keyframes import extract_keyframes
from dune_cli.sfm.matching import match_pairs
from dune_cli.sfm.pairs import exhaustive_pairs
from dune_cli.sfm.shared_work import SharedWork
from support.many_photos import write

fsspec = pytest.importorskip("fsspec")
URL = "memory://work-test/run 1"
LAYOUT = {"a": ("f", ("N",))}


@pytest.fixture
def store() -> Any:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/work-test", recursive=True)


def contents(files: Any, folder: str) -> dict[str, bytes]:
    return {path[len(folder) :]: files.cat_file(path) for path in files.find(folder)}


def test_the_bytes_of_a_folder(store: Any, tmp_path: Path) -> None:
    paths = write(tmp_path / "photos", range(3))
    places = [str(tmp_path / "work"), URL]
    for place in places:
        for cache in (open_work(place, tmp_path)[0], SharedWork(place, InProcess())):
            images = extract_features(paths, Sift(256, 300), cache)
            found = match_pairs(images, exhaustive_pairs(3), Sift(256, 300), cache)
            assert len(found.matches) == 3
            assert len(cache.sizes("features")) == 3 and min(cache.sizes("matches")) > 0
        # the second one computed nothing
        assert not any(cache.counts[kind] for kind in ("photos", "features", "matches"))
    local = {f"/{path.relative_to(places[0])}": path.read_bytes() for path in Path(places[0]).rglob("*.safetensors")}
    assert contents(store, "/work-test/run 1") == local and len(local) == 9
    with WorkFolder(URL).scratch() as folder:
        assert folder.is_dir() and tmp_path not in folder.parents
    assert not folder.exists()


def test_damaged_changed_and_new_files(
    store: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = WorkFolder(URL), WorkFolder(URL)
    key = key_of("x")
    assert not second.has("kind", key) and second.read("kind", key) is None
    first.write("kind", key, {"a": np.arange(3.0)})
    assert first.has("kind", key) and not second.has("kind", key)  # its listing is older
    monkeypatch.setattr(work_objects, "LISTING_S", 0.0)
    assert second.has("kind", key)
    np.testing.assert_array_equal(second.read("kind", key, LAYOUT)["a"], np.arange(3.0))
    path = f"/work-test/run 1/kind/{key[:2]}/{key}.safetensors"
    whole = store.cat_file(path)
    store.pipe_file(path, whole[:-3] + b"???")
    assert second.read("kind", key, LAYOUT) is None and not store.exists(path)
    assert f"memory://work-test/run 1/kind/{key[:2]}/{key}.safetensors is damaged" in capsys.readouterr().err
    assert first.read("kind", key) is None


def test_what_cannot_be_used(store: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuch://bucket"):
        WorkFolder("nosuch://bucket/work")
    with pytest.raises(UserError, match=r"cannot use ftp://127\.0\.0\.1:1/x: .*refused; check the URL"):
        WorkFolder("ftp://127.0.0.1:1/x")
    with pytest.raises((PackageMissing, UserError), match="s3"):
        WorkFolder("s3://bucket/work").has("features", "0" * 32)
    video = tmp_path / "a.mp4"
    video.write_bytes(b"")
    with pytest.raises(UserError, match="one of this machine with --work"):
        extract_keyframes([video], None, WorkFolder(URL))
    store.pipe_file("/work-test/x", b"")
