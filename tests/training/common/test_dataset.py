"""Where training photos come from, broken ones, and the teacher cache."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from dune_cli.errors import UserError
from dune_cli.training.common.dataset import Augmentation, fixed_crop, open_dataset, open_source
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.sampler import BatchSlot
from dune_cli.training.distill.teacher_outputs import CacheKey, TeacherCache, run_teachers
from support.teacher_files import smooth_photo

CPU = torch.device("cpu")


class Mean(torch.nn.Module):
    """A teacher of three channels: the mean colour of each cell."""

    name, note = "mean", ""
    widths = {"cls": 3, "patch": 3}  # noqa: RUF012

    def forward(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        cells = torch.nn.functional.adaptive_avg_pool2d(images, grid)
        return {"cls": cells.mean((2, 3)), "patch": cells.flatten(2).transpose(1, 2)}


def test_the_cache_holds_what_teachers_say_of_the_same_crops(photos: Path, tmp_path: Path) -> None:
    found = open_dataset([str(photos)], ["mean"], 0.1)
    key = CacheKey({"mean": "0"}, 28, (2, 2), 3, 5, True, found.hash, "float32")
    cache, settings = TeacherCache(tmp_path, key, found), Augmentation()
    here, widths = Dist(0, 1, CPU), {"mean": Mean.widths}
    missing = cache.missing_shards(widths, here)
    assert missing == list(range(cache.shards))
    cache.fill({"mean": Mean()}, missing, settings, here, 2, torch.float32, batch_size=7)
    assert cache.missing_shards(widths, here) == [] and cache.shards == -(-sum(found.group_sizes) * 3 // 64)
    for index, epoch in ((0, 0), (4, 1), (sum(found.group_sizes) - 1, 2), (4, 4)):
        slot = BatchSlot(0, index, position=99, epoch=epoch)
        read = cache.read(slot)
        crop = fixed_crop(found, slot, epoch % 3, 28, settings, 5)
        assert torch.equal(read["image"], (crop * 255).round().to(torch.uint8))
        fresh = run_teachers({"mean": Mean()}, read["image"][None].float() / 255, (2, 2), torch.float32)["mean"]
        for kind, value in fresh.items():
            torch.testing.assert_close(read[f"mean/{kind}"], value[0].half())
    assert torch.equal(cache.read(BatchSlot(0, 4, 0, 1))["image"], cache.read(BatchSlot(0, 4, 7, 4))["image"])
    other = TeacherCache(tmp_path, CacheKey(**{**key.__dict__, "crops": 2}), found)
    assert other.folder != cache.folder and len(other.missing_shards(widths, here)) == other.shards


def test_teachers_asked_in_pieces_say_the_same() -> None:
    images = torch.rand(5, 3, 8, 8)
    whole = run_teachers({"mean": Mean()}, images, (2, 2), torch.float32)
    parts = run_teachers({"mean": Mean()}, images, (2, 2), torch.float32, batch_size=2)
    assert all(torch.equal(whole["mean"][kind], parts["mean"][kind]) for kind in ("cls", "patch"))


def tar_of(path: Path, photos: list[Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for photo in photos:
            archive.add(photo, photo.name)
            text = tarfile.TarInfo(photo.stem + ".txt")
            text.size = 5
            archive.addfile(text, io.BytesIO(b"label"))
    return path


def test_folders_lists_and_shards_hold_the_same_photos(photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.iterdir())
    (tmp_path / "list.txt").write_text("# photos\n" + "\n".join(map(str, paths)) + "\n\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for path in paths:
        (tmp_path / "deep" / "er" / path.name).symlink_to(path)
    (tmp_path / "deep" / "note.md").write_text("no photo")
    shards = [tar_of(tmp_path / f"shard-{k}.tar", paths[k::2]) for k in range(2)]
    deep, listed = open_source(str(tmp_path / "deep")), open_source(str(tmp_path / "list.txt"))
    tarred = open_source(str(tmp_path / "shard-*.tar"))
    url = open_source(f"file://{shards[0]}")
    wanted = {path.name: path.read_bytes() for path in paths}
    for source in (deep, listed, tarred):
        assert {Path(source.name(k)).name: source.read(k) for k in range(len(source))} == wanted
    assert [url.read(k) for k in range(len(url))] == [path.read_bytes() for path in paths[::2]]
    assert deep.name(0).startswith("er/") and tarred.name(0).startswith("shard-0.tar/")
    assert str(tmp_path) in tarred.label(0)


def test_shards_in_memory_and_shards_that_are_none(photos: Path, tmp_path: Path) -> None:
    import fsspec

    file = tar_of(tmp_path / "a.tar", sorted(photos.iterdir())[:3])
    with fsspec.open("memory://a.tar", "wb") as remote:
        remote.write(file.read_bytes())
    source = open_source("memory://a.tar")
    assert len(source) == 3 and source.read(1) == sorted(photos.iterdir())[1].read_bytes()
    (tmp_path / "bad.tar").write_bytes(b"not a tar file, not at all" * 40)
    with pytest.raises(UserError, match="must not be compressed"):
        open_source(str(tmp_path / "bad.tar"))
    with pytest.raises(UserError, match="holds no images"):
        open_source(str(tmp_path / "none-*.tar"))


def test_tags_name_teachers_and_folders_may_hold_an_equals_sign(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    for seed in range(3):
        smooth_photo(odd / f"{seed}.png", seed)
    assert open_dataset([str(odd)], ["dinov2"], 0.0).owners == [None]
    tagged = open_dataset([f"mast3r={odd}", f"dinov2={odd}", f"dinov2={odd}"], ["dinov2", "mast3r"], 0.0)
    assert tagged.owners == ["dinov2", "mast3r"] and tagged.group_sizes == (6, 3)


def test_a_broken_photo_gives_way_to_the_next(tmp_path: Path) -> None:
    for seed in range(3):
        smooth_photo(tmp_path / f"{seed}.png", seed)
    (tmp_path / "1.png").write_bytes(b"broken")
    photos = open_dataset([str(tmp_path)], ["dinov2"], 0.0)
    told = []
    photos.on_broken = lambda label, why: told.append((label, why))
    second, third = (photos.load(BatchSlot(0, index, 0, 0)) for index in (1, 2))
    assert torch.equal(second, third) and torch.equal(second, photos.load(BatchSlot(0, 1, 5, 2)))
    assert [Path(label).name for label, _ in told] == ["1.png"] and "not a picture" in told[0][1]
