"""The teacher cache of `dune distill`: shards of crops and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dune_cli.errors import JobFailed
from dune_cli.training.common.dataset import Augmentation, open_dataset
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.sampler import BatchSlot
from dune_cli.training.distill.teacher_outputs import CacheKey, TeacherCache
from fuzz.harness import Sample

HERE = Dist(0, 1, torch.device("cpu"))


class Mean(torch.nn.Module):
    """A teacher of three channels: the mean colour of each cell."""

    widths, gate = {"cls": 3, "patch": 3}, None

    def forward(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        cells = torch.nn.functional.adaptive_avg_pool2d(images, grid)
        return {"cls": cells.mean((2, 3)), "patch": cells.flatten(2).transpose(1, 2)}


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "photos" / f"{number}.png")
    photos = open_dataset([str(folder / "photos")], ["mean"], 0.0)
    key = CacheKey({"mean": "0"}, 14, (2, 2), 25, 5, True, photos.hash, "float32")
    cache = TeacherCache(folder / "cache", key, photos)
    photos.broken["a"] = "for the test"
    teachers = {"mean": Mean()}
    cache.fill(teachers, cache.missing_shards(teachers, HERE), Augmentation(), HERE, 1, torch.float32)
    files = {f"{key.folder}/{path.name}": path.read_bytes() for path in cache.folder.iterdir()}
    slots = [BatchSlot(0, 0, 0, 0), BatchSlot(0, 2, 0, 24)]  # of the first and of the last shard
    whole = {number: cache.read(slot) for number, slot in enumerate(slots)}

    def read(case: Path) -> dict[int, dict[str, torch.Tensor]]:
        found = TeacherCache(case, key, photos)
        missing = found.missing_shards(teachers, HERE)
        rows = {number: found.read(slot) for number, slot in enumerate(slots) if number not in missing}
        accept(rows)
        if missing:
            raise JobFailed(f"{len(missing)} shards are computed again")
        assert found.broken() == {"a": "for the test"}
        return rows

    def accept(rows: dict[int, dict[str, torch.Tensor]]) -> None:
        for number, row in rows.items():
            assert row.keys() == whole[number].keys()
            assert all(torch.equal(row[name], whole[number][name]) for name in row)

    return [Sample(files, read, accept)]
