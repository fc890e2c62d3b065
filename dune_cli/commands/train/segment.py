"""`dune train segment`: a segmentation head on the features of an encoder."""

from __future__ import annotations

from dune_cli.commands import options
from dune_cli.commands.options import SeededOptions
from dune_cli.commands.publishing import RunOutput
from dune_cli.commands.train import _heads
from dune_cli.commands.train._heads import HeadModelOptions, HeadTrainingOptions, TaughtOptions


@options.group("Input")
class MaskOptions(TaughtOptions):
    """The photos and their masks."""

    teacher: str | None = options.changed(
        TaughtOptions, "teacher", help="Teacher that labels --photos: mosaic, which knows 32 classes."
    )


@options.verb("segment")
def command(
    *,
    data: MaskOptions,
    head: HeadModelOptions,
    training: HeadTrainingOptions,
    compute: SeededOptions,
    output: RunOutput,
) -> None:
    """Train a segmentation head on the features of an encoder.

    --data is a folder with images/, masks/ (PNG of the same names, class numbers, 255 for none) and classes.txt, or
    with images/ and a COCO JSON. Files and resuming are as for dune train depth.

    \b
    Example: dune train segment --data orchard/ -o orchard-head/
             dune segment photo.jpg -o classes.png --model orchard-head/head.safetensors
    """
    _heads.run("segmentation", data, head, training, compute, output)
