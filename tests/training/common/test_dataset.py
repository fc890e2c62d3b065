"""Sources of training photos, photos that cannot be read, and augmentation."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.errors import UserError
from dune_cli.training.common.dataset import Augmentation, augment, open_dataset, open_source
from dune_cli.training.common.sampler import BatchSlot
from support.teacher_files import smooth_photo


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
    reported = []
    photos.on_broken = lambda label, why: reported.append((label, why))
    second, third = (photos.load(BatchSlot(0, index, 0, 0)) for index in (1, 2))
    assert torch.equal(second, third) and torch.equal(second, photos.load(BatchSlot(0, 1, 5, 2)))
    assert [Path(label).name for label, _ in reported] == ["1.png"] and "not a picture" in reported[0][1]


def gradient_image() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(90), indexing="ij")
    return torch.stack([rows * 4, columns * 2, rows + columns]).to(torch.uint8)


def test_augmentation_is_a_function_of_its_seed() -> None:
    image, settings = gradient_image(), Augmentation()
    crops = [augment(image, 32, settings, np.random.default_rng([7, k])) for k in range(60)]
    for k, crop in enumerate(crops):
        assert crop.shape == (3, 32, 32) and crop.dtype == torch.float32
        assert crop.min() >= 0 and crop.max() <= 1 and torch.isfinite(crop).all()
        assert torch.equal(crop, augment(image, 32, settings, np.random.default_rng([7, k])))
    assert len({crop.sum().item() for crop in crops}) == 60
    grey = sum(bool((crop[0] == crop[1]).all()) for crop in crops)
    assert 4 <= grey <= 22  # p = 0.2


def test_without_colours_only_the_crop_and_the_flip_remain() -> None:
    image = gradient_image()
    settings = Augmentation(photometric=False)
    flips = 0
    for k in range(40):
        crop = augment(image, 32, settings, np.random.default_rng(k))
        left_to_right = crop[1].mean(0).diff().mean()
        flips += int(left_to_right < 0)
        assert crop[0].mean(1).diff().mean() > 0  # never upside down
        area = abs(left_to_right) * 32 / (2 / 255) * crop[0].mean(1).diff().mean() * 32 / (4 / 255)
        assert 0.35 < area / (60 * 90) < 1.05  # scale (0.4, 1)
    assert 10 < flips < 30
    tall = augment(torch.zeros(3, 300, 16, dtype=torch.uint8), 14, settings, np.random.default_rng(0))
    assert tall.shape == (3, 14, 14)
