"""Teacher outputs: computed in parts, cached, and cached again where a shard is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dune_cli.training.common.dataset import Augmentation, fixed_crop, open_dataset
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.sampler import BatchSlot
from dune_cli.training.distill.teacher_outputs import CacheKey, TeacherCache, run_teachers
from support.published_files import dinov2_manifest, make_state_dict

TINY = ("--student", "vit:64x1", "--size", 28, "--batch-size", 2, "--steps", 2, "--log-every", 1, "--held-out", 0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "dinov2.pth"
    torch.save(make_state_dict(dinov2_manifest(64, 1, 2, registers=4), 3), path)
    return f"dinov2={path}"


class Mean(torch.nn.Module):
    """A teacher of three channels: the mean colour of each cell."""

    name, note, gate = "mean", "", None
    widths = {"cls": 3, "patch": 3}  # noqa: RUF012

    def forward(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        cells = torch.nn.functional.adaptive_avg_pool2d(images, grid)
        return {"cls": cells.mean((2, 3)), "patch": cells.flatten(2).transpose(1, 2)}


def test_the_cache_holds_what_teachers_say_of_the_same_crops(photos: Path, tmp_path: Path) -> None:
    data = open_dataset([str(photos)], ["mean"], 0.1)
    key = CacheKey({"mean": "0"}, 28, (2, 2), 3, 5, True, data.hash, "float32")
    cache, settings = TeacherCache(tmp_path, key, data), Augmentation()
    alone, teachers = Dist(0, 1, CPU), {"mean": Mean()}
    missing = cache.missing_shards(teachers, alone)
    assert missing == list(range(cache.shards))
    cache.fill(teachers, missing, settings, alone, 2, torch.float32, batch_size=7)
    assert cache.missing_shards(teachers, alone) == [] and cache.shards == -(-sum(data.group_sizes) * 3 // 64)
    for index, epoch in ((0, 0), (4, 1), (sum(data.group_sizes) - 1, 2), (4, 4)):
        slot = BatchSlot(0, index, position=99, epoch=epoch)
        read = cache.read(slot)
        crop = fixed_crop(data, slot, epoch % 3, 28, settings, 5)
        assert torch.equal(read["image"], (crop * 255).round().to(torch.uint8))
        fresh = run_teachers({"mean": Mean()}, read["image"][None].float() / 255, (2, 2), torch.float32)["mean"]
        for kind, value in fresh.items():
            torch.testing.assert_close(read[f"mean/{kind}"], value[0].half())
    assert torch.equal(cache.read(BatchSlot(0, 4, 0, 1))["image"], cache.read(BatchSlot(0, 4, 7, 4))["image"])
    other = TeacherCache(tmp_path, CacheKey(**{**key.__dict__, "crops": 2}), data)
    assert other.folder != cache.folder and len(other.missing_shards(teachers, alone)) == other.shards


def test_teachers_asked_in_pieces_say_the_same() -> None:
    images = torch.rand(5, 3, 8, 8)
    whole = run_teachers({"mean": Mean()}, images, (2, 2), torch.float32)
    parts = run_teachers({"mean": Mean()}, images, (2, 2), torch.float32, batch_size=2)
    assert all(torch.equal(whole["mean"][kind], parts["mean"][kind]) for kind in ("cls", "patch"))


def test_damaged_shards_are_computed_anew_with_the_same_numbers(
    distill, teacher: str, photos: Path, tmp_path: Path
) -> None:
    cached = ("--cache", tmp_path / "cache")
    assert distill(teacher, photos, tmp_path / "a", *TINY, *cached).exit_code == 0
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = [shard.read_bytes() for shard in shards]
    assert len(shards) == 2
    shards[0].write_bytes(whole[0][:-9] + b"\0" + whole[0][-8:])
    shards[1].write_bytes(whole[0])  # whole, and of other photos
    again = distill(teacher, photos, tmp_path / "b", *TINY, *cached)
    assert again.exit_code == 0, again.output
    assert "2 of 2 shards to compute" in again.stderr and f"{shards[0]} is damaged" in again.stderr
    assert [shard.read_bytes() for shard in shards] == whole
    one, other = ((tmp_path / name / "student.safetensors").read_bytes() for name in "ab")
    assert one == other
    assert "shards to compute" not in distill(teacher, photos, tmp_path / "c", *TINY, *cached).stderr
