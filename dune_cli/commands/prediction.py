"""What `dune predict` asks of a verb that it can run beside others on one encoder pass.

Such a verb's file defines PREDICT_TASK, the name of a subclass of PredictTask.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dune_cli.commands.options import CameraOptions, ComputeOptions
from dune_cli.provenance import Run, Source

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.shared_backbone import SharedBackboneSlot


@dataclass(frozen=True)
class TaskSettings:
    """A task's own `model`, and what all tasks get. None: the default of the task's verb."""

    model: str | None
    encoder: str | None
    body_models: str | None
    min_score: float
    compute: ComputeOptions


class PredictTask(ABC):
    """One task with its model loaded. Its output is that of its verb with default settings."""

    name: ClassVar[str]  # on the command line
    file: ClassVar[str]  # of the output, in the folder of the photo
    sized: ClassVar[bool] = True  # whether --size applies
    sources: list[Source]

    @abstractmethod
    def __init__(self, settings: TaskSettings) -> None:
        """Loads the model."""

    @staticmethod
    @abstractmethod
    def check(settings: TaskSettings) -> None:
        """DuneError for weights that are not on this machine. Imports no torch."""

    @abstractmethod
    def slot(self) -> SharedBackboneSlot | None:
        """Where the model's ViT is; None for another kind of encoder."""

    @abstractmethod
    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path` and returns the JSON document, its provenance empty."""

    @abstractmethod
    def verb_options(self, cameras: CameraOptions, size: int | None) -> dict[str, Any]:
        """The verb's options that give the same output; None is left out."""

    def shared_size(self, photo: Photo, patch: int) -> int | None:
        """The --size that this task takes where it shares an encoder; None: it takes what the others do."""
        return None

    def command(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path) -> str:
        """The command of the task's own verb that writes the same file."""
        words = ["dune", type(self).__module__.rpartition(".")[2], str(photo.path), "-o", str(path)]
        given = {name: value for name, value in self.verb_options(cameras, size).items() if value is not None}
        return shlex.join(words + [str(word) for pair in given.items() for word in pair])
