"""`dune classify`: photos to ImageNet classes."""

from __future__ import annotations

from typing import Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand


@click.command(cls=GroupedCommand, short_help="Photos to ImageNet classes, best first.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="A DINOv2 ImageNet head: a name of 'dune weights list', or a weight file.  [default: the best one here]",
)
@click.option("--encoder", metavar="NAME|FILE", help="The head's DINOv2 encoder.  [default: told by the head's name]")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes a photo.")
@options.compute
@options.output(False, "Also write JSON: a .json for one photo, or a folder with one file a photo.")
@options.as_json
@options.common
def command(
    images: tuple[str, ...],
    model: str | None,
    encoder: str | None,
    top: int,
    device: str,
    dtype: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Photos to the 1000 classes of ImageNet: probability, number and name, best first.

    IMAGES are files, folders and globs. The photo's short side is resized to 256 px and the middle 224 x 224 looked at.

    \b
    Example: dune classify photo.jpg
             dune classify photos/ --model dinov2-vitb14-linear4 --json
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import targets

    paths = expand(images)
    outputs = targets(paths, output, None, ("json",), overwrite) if output is not None else [None] * len(paths)

    model = checks.model_of("classify", model, encoder)

    from dune_cli.checkpoints.loader import load_classifier
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks import classify as task

    run = Run()
    with run.stage("load"):
        network = load_classifier(model, encoder, device, dtype)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")
    documents: list[dict[str, Any]] = []
    for path, target in zip(console.progress(paths, "classify", unit="photo"), outputs):
        with run.stage("read"):
            photo = read_photo(path)
        with run.stage("network"):
            scores = task.predict(network, photo, top)
        if scores[0].name is None:
            console.note(f"no list of names fits the {network.classes} classes of {network.source.name}")
        provenance = run.provenance(network.sources, [(photo.path, photo.sha256)], dtype=dtype)
        documents.append(task.document(photo, scores, provenance))
        if target is not None:
            write_json(target, documents[-1])
        if not as_json:
            if len(paths) > 1:
                console.result(f"{path}:")
            for score in scores:
                console.result(f"{score.score:.4f}  {score.index:4d}  {score.name or ''}".rstrip())
    if as_json:
        console.document(dumps(documents[0] if len(documents) == 1 else documents))
