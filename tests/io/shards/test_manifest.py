"""The listing of photos, and the manifest that says which is in which shard."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from dune_cli.errors import PackageMissing, UserError
from dune_cli.io.object_stores import ObjectStore, is_url, read_place
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.io.shards.listing import ListedFile, list_photos
from dune_cli.io.shards.manifest import Manifest, changes_of, compare, write_part

NAMES = (
    "b.jpg",
    "b/a.jpg",
    "b-c.png",
    "a/z.PNG",
    "a/B.jpeg",
    "a/b/ä.jpg",
    "mask_b.png",
    "clip.mp4",
    "raw.dng",
    "t.txt",
)
LISTED = ["a/B.jpeg", "a/b/ä.jpg", "a/z.PNG", "b-c.png", "b.jpg", "b/a.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for size, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    hidden = tmp_path / "photos" / ".hidden"
    hidden.mkdir()
    (hidden / "a.jpg").touch()
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    return tmp_path / "photos"


def test_the_order_is_that_of_the_bytes_of_whole_paths(folder: Path) -> None:
    left_out: Counter[str] = Counter()
    files = list(list_photos([str(folder)], left_out))
    assert [Path(file.place).relative_to(folder).as_posix() for file in files] == LISTED
    places = [os.fsencode(file.place) for file in files]
    assert places == sorted(places)
    assert all(file.size_bytes == Path(file.place).stat().st_size for file in files)
    found = {kind.split()[0]: count for kind, count in left_out.items() if count}
    assert found == {"masks": 1, "videos": 1, "raw": 1, "links": 1}
    twice = [str(folder / "b"), str(folder), f"{folder}/b*.jpg"]  # in any order, each photo once
    assert list(list_photos(twice, Counter())) == files


def test_an_object_store_lists_and_reads_the_same(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in NAMES:
        store.pipe(f"/listing/{name}", (folder / name).read_bytes())
    files = list(list_photos(["memory://listing"], Counter()))
    assert [file.place.partition("listing/")[2] for file in files] == LISTED and is_url(files[0].place)
    assert [len(read_place(file.place, "a photo", 100)) for file in files] == [file.size_bytes for file in files]
    through = list(list_photos([f"file://{folder}"], Counter()))
    assert [file.size_bytes for file in through] == [file.size_bytes for file in files]
    with pytest.raises(UserError, match="nothing at memory:///nowhere"):
        list(list_photos(["memory://nowhere"], Counter()))


def test_stores_that_are_not_there_are_refused() -> None:
    if not _installed("s3fs"):
        with pytest.raises(PackageMissing, match=r"s3://bucket/key needs the package s3fs.*pip install s3fs"):
            ObjectStore("s3://bucket/key")
    with pytest.raises(UserError, match="check its scheme"):
        ObjectStore("nothing://bucket")
    with pytest.raises(UserError, match="no such file: memory:///none"):
        read_place("memory://none", "a photo", 10)


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _listed(*names: str) -> list[ListedFile]:
    return [ListedFile(name, len(name)) for name in names]


def test_shards_of_parts(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = ShardFolder(str(tmp_path))
    first = write_part(folder, _listed(*(f"{n:04d}" for n in range(2500))), (), 7)
    assert first is not None and (first.photos, first.shards) == (2500, 358)
    second = write_part(folder, _listed("0000a", "9"), [first], 7)
    assert second is not None and (second.first_row, second.first_shard, second.shards) == (2500, 358, 1)
    assert write_part(folder, [], [first, second], 7) is None
    manifest = Manifest(folder, [first, second], 7)
    manifest.check()
    shards = [manifest.shard(number) for number in range(manifest.shards)]
    rows = [(shard.first_row + k, file.place) for shard in shards for k, file in enumerate(shard.files)]
    assert [row for row, _ in rows] == list(range(2502)) and rows[2499][1] == "2499" and rows[2500][1] == "0000a"
    assert [len(shard.files) for shard in shards] == [manifest.photos_in(number) for number in range(359)]
    assert [file.place for file in manifest][:3] == ["0000", "0000a", "0001"]
    Path(tmp_path, second.file).write_bytes(b"other")
    with pytest.raises(UserError, match="was changed"):
        manifest.check()


def test_changes() -> None:
    before, now = _listed("a", "b", "d", "e"), [*_listed("a", "c"), ListedFile("d", 9), *_listed("e", "f")]
    assert [(kind, file.place) for kind, file in compare(before, now)] == [
        ("removed", "b"),
        ("added", "c"),
        ("resized", "d"),
        ("added", "f"),
    ]
    changes = changes_of(compare(before, now))
    assert (changes.removed, changes.added, changes.resized, changes.first) == (1, 2, 1, "b") and changes
    assert not changes_of(compare(before, before))
