"""Verbs for shards without models, and folders of small photos."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.io.photos import Photo
from dune_cli.io.png import png_bytes
from dune_cli.io.shards.files import Column
from dune_cli.io.shards.folder import ShardFolder
from dune_cli.provenance import Source
from dune_cli.tasks.large_folders.pipeline import PhotoResult
from dune_cli.tasks.large_folders.record import CHECK, ShardRun, open_run
from dune_cli.tasks.large_folders.shards import ShardJobs

SIZES = ((20, 16), (16, 24), (20, 16), (32, 16))  # width, height


def write_photos(folder: Path, numbers: Sequence[int]) -> Path:
    """Photos of several sizes in two subfolders, each with colours of its own."""
    for number in numbers:
        place = folder / f"part{number % 2}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        width, height = SIZES[number % len(SIZES)]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    return folder


@dataclass(frozen=True)
class Means:
    """The mean colour and the mirrored photo. kill: ends its process before the photo with that many bytes of mean red,
    which it cannot be twice: the mark `killed` is then there. dark: photos darker than it have no result."""

    kind: str = "parquet"
    batch_size: int = 1
    kill_after: int = -1
    dark: float = -1.0
    weights: str = "w1"

    name = "means"

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("kill_after", "weights")}

    def load(self, device: str) -> MeansNetwork:
        return MeansNetwork(self)


class MeansNetwork:
    """`passes`: the shapes of the passes, and how many different photos were in each."""

    keeps_pixels = True

    def __init__(self, verb: Means) -> None:
        self.verb, self.seen = verb, 0
        self.sources = [Source("means", verb.weights, "none")]
        self.columns = [Column("mean", "list:float32")] if verb.kind == "parquet" else []
        self.passes: list[tuple[tuple[int, ...], int]] = []

    def prepare(self, photo: Photo) -> tuple[tuple[int, ...], np.ndarray]:
        return photo.rgb.shape, photo.rgb

    def predict(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert len(inputs) == self.verb.batch_size and len({one.shape for one in inputs}) == 1
        self.passes.append((inputs[0].shape, len({id(one) for one in inputs})))
        self.seen += 1
        if self.seen == self.verb.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if any(one.mean() < self.verb.dark for one in inputs):
            raise UserError("it is too dark")
        return [one.mean((0, 1)) for one in inputs]

    def finish(self, photo: Photo, result: np.ndarray) -> PhotoResult:
        if self.verb.kind == "parquet":
            return PhotoResult({"mean": result})
        return PhotoResult(files={"mirror.png": png_bytes(photo.rgb[:, ::-1])}, document={"mean": result})


def shard_jobs(photos: Path, output: Path | str, verb: Means, manifest: str = CHECK, **settings: Any) -> ShardJobs:
    """The jobs of a run with 3 photos a shard."""
    folder = ShardFolder(str(output))
    run = open_run(folder, ShardRun(verb.name, verb.settings(), (str(photos),), 3), manifest)
    jobs = ShardJobs(folder, run, verb, "cpu", threads=2, **settings)
    return ShardJobs(folder, run, verb, "cpu", threads=2, models=jobs.first_models(), **settings)


def shard_bytes(output: Path) -> dict[str, bytes]:
    """All files of a run but what says how it came about."""
    return {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}
