"""`dune train classify`: a head for classes of whole photos on the features of an encoder."""

from __future__ import annotations

from dune_cli.commands import options
from dune_cli.commands.options import SeededOptions
from dune_cli.commands.publishing import RunOutput
from dune_cli.commands.train import _heads
from dune_cli.commands.train._heads import HeadModelOptions, HeadTrainingOptions, LabelledOptions


@options.group("Model")
class ClassHeadOptions(HeadModelOptions):
    """The head."""

    kind: str = options.changed(HeadModelOptions, "kind", default="mlp", help="Kind of head: linear or mlp.")


@options.verb("classify")
def command(
    *,
    data: LabelledOptions,
    head: ClassHeadOptions,
    training: HeadTrainingOptions,
    compute: SeededOptions,
    output: RunOutput,
) -> None:
    """Train a head for classes of whole photos on the features of an encoder.

    --data is a folder with a folder of photos for each class. Files and resuming are as for dune train depth.

    \b
    Example: dune train classify --data birds/ -o birds-head/
             dune classify photo.jpg --model birds-head/head.safetensors
    """
    _heads.run("classification", data, head, training, compute, output)
