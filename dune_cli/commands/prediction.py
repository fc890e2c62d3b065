"""What `dune predict` asks of a verb that it can run beside others on one encoder pass.

Such a verb's file defines PREDICT_TASK, the name of a subclass of PredictTask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dune_cli.commands.options import CameraOptions, ComputeOptions
from dune_cli.provenance import Run, Source

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.heads import HeadedEncoder
    from dune_cli.models.shared_backbone import SharedBackboneSlot


@dataclass(frozen=True)
class TaskSettings:
    """A task's own `model`, and what all tasks get. None: the default of the task's verb."""

    model: str | None
    encoder: str | None
    body_models: str | None
    min_score: float
    compute: ComputeOptions


def sees_whole(network: Any) -> bool:
    """Whether a network is a head of `dune train`, which sees whole photos."""
    from dune_cli.models.heads import HeadedEncoder

    return isinstance(network, HeadedEncoder)


def head_size(network: HeadedEncoder, photo: Photo) -> int:
    """The long side of the input, in pixels, that a head of `dune train` takes for a photo."""
    return max(network.input_size(photo.height, photo.width))


class PredictTask(ABC):
    """One task. Its output is that of its verb with default settings.

    `name` on the command line; `file` of the output, in the folder of the photo; `sized`: whether --size applies;
    `with_camera`: whether intrinsics do. `whole`: whether its network sees the whole photo, stretched to whole patches,
    as heads of `dune train` do; others crop the border. `pictured`: the last result, as arguments of
    `previews.picture`; None where there is no picture of it. `model` is the one that is used, `sources` are those of
    the loaded networks.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    sized: ClassVar[bool] = True
    with_camera: ClassVar[bool] = True
    whole: bool = False
    pictured: tuple[Any, ...] | None = None
    model: str
    sources: list[Source]

    @abstractmethod
    def __init__(self, settings: TaskSettings) -> None:
        """Chooses the model. DuneError for weights that are not on this machine. Imports no torch."""

    @abstractmethod
    def load(self) -> None:
        """Loads the model."""

    @abstractmethod
    def slot(self) -> SharedBackboneSlot | None:
        """Where the model's ViT is; None for another kind of encoder."""

    @abstractmethod
    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path` and returns the JSON document, its provenance empty."""

    def verb_options(self) -> dict[str, Any]:
        """Further options of the verb that give the same output."""
        return {}

    def shared_size(self, photo: Photo, patch: int) -> int | None:
        """The --size that this task takes where it shares an encoder; None: it takes what the others do."""
        return None

    def see_whole(self) -> None:
        """Called before the first photo where a task that shares the encoder sees whole photos."""
        self.whole = True

    def command(self, cameras: CameraOptions, size: int | None, compute: ComputeOptions) -> list[str]:
        """The task's own verb, and the options with which it writes the same file."""
        given = {"--model": self.model, **self.verb_options()}
        if self.sized:
            given["--size"] = size
        if self.with_camera:
            given |= {"--intrinsics": cameras.intrinsics, "--fov-deg": cameras.fov_deg}
        given |= {"--device": compute.device, "--dtype": compute.dtype}
        verb = type(self).__module__.rpartition(".")[2]
        return [verb, *(str(word) for pair in given.items() if pair[1] is not None for word in pair)]
