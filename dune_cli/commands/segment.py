"""`dune segment`: photos to class maps."""

from __future__ import annotations

from typing import Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand

OVERLAY = "_overlay.png"


@click.command(cls=GroupedCommand, short_help="Photos to a class for every pixel (ADE20K, VOC).")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="A DINOv2 segmentation head: a name of 'dune weights list', or a weight file.  [default: the best one here]",
)
@click.option("--encoder", metavar="NAME|FILE", help="The head's DINOv2 encoder.  [default: told by the head's name]")
@click.option("--overlay", is_flag=True, help="Also write the photo with the classes' colours, as NAME_overlay.png.")
@click.option(
    "--scales",
    type=click.IntRange(1, 5),
    default=3,
    show_default=True,
    help="For heads with several scales (ms): how many, small to large, each also mirrored. 5 is how they were scored.",
)
@click.option(
    "--size",
    type=click.IntRange(14),
    default=1280,
    show_default=True,
    metavar="PX",
    help="Photos with a longer long side are reduced to it first.",
)
@options.compute
@options.output(True, "A .png for one photo, or a folder with one file a photo.")
@options.as_json
@options.common
def command(
    images: tuple[str, ...],
    model: str | None,
    encoder: str | None,
    overlay: bool,
    scales: int,
    size: int,
    device: str,
    dtype: str,
    output: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Photos to class maps: an 8-bit palette PNG whose pixel values are the class numbers.

    IMAGES are files, folders and globs. A JSON beside each lists the classes that occur, their colours and shares of
    the pixels; names and colours are the weight file's own where it has them.

    \b
    Example: dune segment photo.jpg -o classes.png --overlay
             dune segment photos/ -o classes/ --model dinov2-vits14-voc2012-ms
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import sibling, targets

    paths = expand(images)
    beside = (".json", OVERLAY) if overlay else (".json",)
    outputs = targets(paths, output, None, ("png",), overwrite, beside)

    model = checks.model_of("segment", model, encoder)

    from dune_cli.checkpoints.loader import load_segmenter
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks import segment as task

    run = Run()
    with run.stage("load"):
        network = load_segmenter(model, encoder, device, dtype)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")
    if not network.class_names:
        console.note(f"{network.source.name} carries no names of its {network.classes} classes: numbers are given")
    documents: list[dict[str, Any]] = []
    for path, target in zip(console.progress(paths, "segment", unit="photo"), outputs):
        with run.stage("read"):
            photo = read_photo(path)
        result = task.predict(network, photo, scales, size, run)
        picture = sibling(target, OVERLAY) if overlay else None
        with run.stage("write"):
            task.write(result, target)
            if picture is not None:
                task.write_overlay(result, picture)
        provenance = run.provenance(network.sources, [(photo.path, photo.sha256)], dtype=dtype)
        documents.append(task.document(result, target, picture, provenance))
        write_json(sibling(target, ".json"), documents[-1])
        if not as_json:
            console.result(target)
    if as_json:
        console.document(dumps(documents[0] if len(documents) == 1 else documents))
