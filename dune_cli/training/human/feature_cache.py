"""Features of all pictures with their people, computed once: float16 in safetensors shards, a shard at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dune_cli.io.photos import read_photo
from dune_cli.training.heads.feature_shards import ROWS, FeatureShards, encoded
from dune_cli.training.human.people import LabelledPeople
from dune_cli.training.human.synthetic import PictureMaker
from dune_cli.training.human.views import draw_view

SCHEMA = "dune.people-features/1"
PEOPLE = "people."  # before the names of the arrays of a picture's people


@dataclass(frozen=True)
class PictureRow:
    """A picture: a view of the photo `photo`, or, where that is -1, the made-up picture `number`. held_out: for
    scores."""

    photo: int
    number: int
    held_out: bool

    @property
    def made(self) -> bool:
        """Whether the picture is made up."""
        return self.photo < 0


class PictureCache:
    """The pictures of a run. made_of: what their features depend on besides the pictures: encoder, sizes, seed, names
    of features."""

    def __init__(
        self,
        folder: Path,
        made_of: dict[str, Any],
        photos: Sequence[tuple[Path, LabelledPeople]],
        maker: PictureMaker,
        rows: Sequence[PictureRow],
    ) -> None:
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=list).encode()).hexdigest()
        self.photos, self.maker = photos, maker
        self.names = tuple(made_of["features"])
        self.rows = tuple(rows)
        self._bank = _digest(maker.bank.rotations.tobytes(), *(str(path).encode() for path in maker.bank.backgrounds))
        self._shards = FeatureShards(folder / digest[:16], SCHEMA, "--views or --synthetic")
        self._shards.paths += [self._path(part) for part in self._parts()]

    @property
    def bytes(self) -> int:
        """What the shards take on the disk."""
        return self._shards.bytes

    def picture(self, row: PictureRow) -> tuple[np.ndarray, LabelledPeople]:
        """The picture (S, S, 3) uint8 of a row, drawn anew, and its people."""
        if row.made:
            made = self.maker.make(row.number)
            return made.rgb, made.people
        path, people = self.photos[row.photo]
        return draw_view(read_photo(path).rgb, people, path.name, row.number, self.maker.size_px, self.maker.seed)

    def fill(self, encoder: nn.Module) -> None:
        """Computes the shards that are missing or damaged. JobFailed where one cannot be written."""
        self._shards.fill(self._parts(), lambda part: self._compute(encoder, part))

    def read(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Features by name, and the arrays of `LabelledPeople.arrays` after PEOPLE, of rows by number, stacked.

        JobFailed for a shard that cannot be read.
        """
        return self._shards.read(divmod(number, ROWS) for number in numbers)

    def _parts(self) -> list[Sequence[PictureRow]]:
        return [self.rows[first : first + ROWS] for first in range(0, len(self.rows), ROWS)]

    def _path(self, part: Sequence[PictureRow]) -> Path:
        texts = []
        for row in part:
            if row.made:
                texts.append(f"made {row.number} {self._bank}")
            else:
                path, people = self.photos[row.photo]
                label = _digest(*(np.ascontiguousarray(v).tobytes() for v in people.by_person().values()))
                texts.append(f"{path} {path.stat().st_size} {label} {row.number}")
        name = hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:32]
        return self._shards.folder / f"{name}.safetensors"

    def _compute(self, encoder: nn.Module, part: Sequence[PictureRow]) -> dict[str, np.ndarray]:
        pictures, people = [], []
        for row in part:
            rgb, labelled = self.picture(row)
            pictures.append(torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))))
            people.append(labelled.arrays())
        labels = {f"{PEOPLE}{name}": np.stack([one[name] for one in people]) for name in people[0]}
        return labels | encoded(encoder, torch.stack(pictures), self.names)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
