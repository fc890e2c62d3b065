"""Teacher outputs computed once: fixed crops and their tokens, float16, in safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dune_cli.console import progress
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.cache import check_cached, note_damaged, text_array, text_of, write_cached
from dune_cli.io.safe_read import parse_json
from dune_cli.teachers.teacher import Teacher
from dune_cli.training.common.dataset import Augmentation, Photos, fixed_crop
from dune_cli.training.common.dist import Dist
from dune_cli.training.common.schedule import BatchSlot
from dune_cli.training.distill.step import run_teachers

ROWS = 64  # crops a shard
OPEN_SHARDS = 256
SCHEMA = "dune.teacher-cache/1"
BROKEN = "broken"


@dataclass(frozen=True)
class CacheKey:
    """What the cached values depend on; another key is another folder."""

    teachers: dict[str, str]  # name -> sha256 or description of the weights
    size_px: int
    grid: tuple[int, int]
    crops: int
    seed: int
    photometric: bool
    photos: str  # hash of the names of all photos, in order
    dtype: str

    @property
    def folder(self) -> str:
        text = json.dumps(self.__dict__, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TeacherCache:
    """Rows are photo-major: row (first photo of the group + index)·crops + crop."""

    def __init__(self, folder: Path, key: CacheKey, photos: Photos) -> None:
        self.folder, self.key, self.photos = folder / key.folder, key, photos
        self.made_of = f"{key.folder} of {sum(photos.sizes) * key.crops} rows"
        self.first = [sum(photos.sizes[:group]) for group in range(len(photos.sizes))]
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    @property
    def rows(self) -> int:
        return sum(self.photos.sizes) * self.key.crops

    @property
    def shards(self) -> int:
        return -(-self.rows // ROWS)

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def unfilled(self, widths: Mapping[str, Mapping[str, int]], here: Dist) -> list[int]:
        """This rank's shards (every `count`-th) that are still to be computed: those that are missing, and those that
        are damaged or of something else, which a note tells. Reads all that are there.

        widths: of each teacher's kinds of tokens.
        """
        mine = range(here.rank, self.shards, here.count)
        checked = progress(mine, "teacher cache, checking", unit="shard")
        return [shard for shard in checked if not self._is_whole(shard, widths)]

    def _is_whole(self, shard: int, widths: Mapping[str, Mapping[str, int]]) -> bool:
        path = self.path(shard)
        if not check_cached(path, SCHEMA, self._made_of(shard)):
            return False
        rows, size = min(ROWS, self.rows - shard * ROWS), self.key.size_px
        wanted = {"image": ("U8", [rows, 3, size, size])}
        for name, kinds in widths.items():
            for kind, width in kinds.items():
                tokens = [self.key.grid[0] * self.key.grid[1]] if kind == "patch" else []
                wanted[f"{name}/{kind}"] = "F16", [rows, *tokens, width]
        try:
            self._broken(shard)
            with safe_open(path, framework="np") as file:
                parts = {name: file.get_slice(name) for name in file.keys() if name != BROKEN}  # noqa: SIM118
                if {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()} != wanted:
                    raise UserError("its arrays are not those of these teachers")
        except (SafetensorError, OSError, ValueError) as error:
            note_damaged(path, error)
            return False
        return True

    def _made_of(self, shard: int) -> str:
        return f"{self.made_of}, shard {shard}"

    @property
    def bytes(self) -> int:
        """What the shards take on the disk."""
        return sum(self.path(shard).stat().st_size for shard in range(self.shards) if self.path(shard).exists())

    def fill(
        self,
        teachers: Mapping[str, Teacher],
        shards: Sequence[int],
        settings: Augmentation,
        here: Dist,
        workers: int,
        amp: torch.dtype,
        at_once: int = ROWS,
    ) -> None:
        """Computes `shards`, each written whole or not at all.

        JobFailed when a shard cannot be written; those that are there are used by the next run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers) as pool:
            for shard in progress(shards, "teacher cache", unit="shard"):
                rows = range(shard * ROWS, min((shard + 1) * ROWS, self.rows))
                crops = torch.stack(list(pool.map(lambda row: self._crop(row, settings), rows)))
                tensors = {"image": (crops * 255).round().to(torch.uint8)}
                # the teachers see what the student will: the 8-bit crop
                seen = tensors["image"].to(here.device).float() / 255
                for name, kinds in run_teachers(teachers, seen, self.key.grid, amp, at_once).items():
                    for kind, value in kinds.items():
                        tensors[f"{name}/{kind}"] = _half(value, name)
                self._write(shard, tensors)

    def _write(self, shard: int, tensors: dict[str, torch.Tensor]) -> None:
        try:
            arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
            arrays[BROKEN] = text_array(json.dumps(self.photos.broken))
            write_cached(self.path(shard), SCHEMA, self._made_of(shard), arrays)
        except OSError as error:
            why = error.strerror or error
            raise JobFailed(
                f"cannot write the teacher cache {self.path(shard)} ({why}); make room, or use fewer --crops, and run "
                "the same command again"
            ) from error

    def _crop(self, row: int, settings: Augmentation) -> torch.Tensor:
        photo, crop = divmod(row, self.key.crops)
        group = max(g for g, first in enumerate(self.first) if first <= photo)
        slot = BatchSlot(group, photo - self.first[group], position=0, epoch=0)
        return fixed_crop(self.photos, slot, crop, self.key.size_px, settings, self.key.seed)

    def broken(self) -> dict[str, str]:
        """Photos that could not be read when the cache was filled: label -> why."""
        found: dict[str, str] = {}
        for shard in range(self.shards):
            try:
                found |= self._broken(shard)
            except (OSError, SafetensorError, ValueError) as error:
                raise self._unreadable(shard, error) from error
        return found

    def _broken(self, shard: int) -> dict[str, str]:
        with safe_open(self.path(shard), framework="np") as file:
            value = parse_json(text_of(file.get_tensor(BROKEN)), str(self.path(shard)))
        if not isinstance(value, dict) or not all(isinstance(why, str) for why in value.values()):
            raise UserError("its list of broken photos is of another form")
        return value

    def _open(self, shard: int) -> Any:
        return safe_open(self.path(shard), framework="pt")

    def read(self, slot: BatchSlot) -> dict[str, torch.Tensor]:
        """A slot's crop ("image", uint8) and tokens ("<teacher>/<kind>", float16); crops take turns by epoch.

        JobFailed for a shard that cannot be read.
        """
        row = (self.first[slot.group] + slot.index) * self.key.crops + slot.epoch % self.key.crops
        shard, place = divmod(row, ROWS)
        try:
            file = self._shard(shard)
            return {name: file.get_slice(name)[place] for name in file.keys() if name != BROKEN}  # noqa: SIM118
        except (OSError, SafetensorError, IndexError) as error:
            raise self._unreadable(shard, error) from error

    def _unreadable(self, shard: int, error: Exception) -> JobFailed:
        return JobFailed(
            f"cannot read the teacher cache {self.path(shard)} ({error}), which was whole when the run began; run the "
            "same command again, which computes it anew"
        )


def _half(value: torch.Tensor, teacher: str) -> torch.Tensor:
    half = value.half().cpu().contiguous()
    if not bool(torch.isfinite(half).all()):
        raise JobFailed(
            f"outputs of the teacher {teacher} do not fit into float16 (largest {float(value.abs().max()):.3g}), "
            "which the cache stores; leave out --cache"
        )
    return half
