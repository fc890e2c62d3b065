"""`dune encode`: photos to features (NPZ) or PCA pictures (PNG)."""

from __future__ import annotations

from collections.abc import Iterator

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand

FORMATS = ("npz", "png")


@click.command(cls=GroupedCommand)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    default="dune-mini",
    show_default=True,
    metavar="NAME|FILE",
    help="Encoder: a name of 'dune weights list', a weight file, timm:NAME, or timm:NAME=FILE.",
)
@click.option("--teacher", metavar="NAME", help="The encoder's prediction of this teacher's tokens instead of its own.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Of the files in a folder -o.  [default: npz]")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Photos in one pass.")
@options.size
@options.compute
@options.output(True, "A file .npz or .png for one photo, or a folder with one file a photo.")
@options.as_json
@options.common
def command(
    images: tuple[str, ...],
    model: str,
    teacher: str | None,
    kind: str | None,
    batch_size: int,
    size: int | None,
    device: str,
    dtype: str,
    output: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Photos to features: arrays cls (D), registers (R, D), patches (h, w, D), or a PCA picture.

    IMAGES are files, folders and globs. Beside each file lies a JSON with the model, its licence and the pixel
    transform. Default size: the encoder's native one (336, 448 or 518 px, long side).

    \b
    Example: dune encode photo.jpg -o pca.png
             dune encode photo.jpg --model dune-vitb14-448 -o features.npz
             dune encode photos/ --model dinov2-vits14 --format png -o pca/
             dune encode photo.jpg --model dune-vitb14-448 --teacher dino2reg_vitlarge_14 -o dino.npz
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import targets

    paths = expand(images)
    outputs = targets(paths, output, kind, FORMATS, overwrite, (".json",))

    checks.weights(model)

    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.photos import Photo, read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks import encode as task

    run = Run()
    with run.stage("load"):
        encoder = load_encoder(model, device=device, dtype=dtype)
    task.check_teacher(encoder, teacher)
    console.note(f"{encoder.source.name}, licence of the weights: {encoder.source.licence}")

    def photos() -> Iterator[Photo]:
        for path in console.progress(paths, "encode", unit="photo"):
            with run.stage("read"):
                photo = read_photo(path)
            yield photo

    documents = []
    for features, target in zip(task.encode(encoder, photos(), size, teacher, batch_size, run), outputs):
        with run.stage("write"):
            task.write(features, target)
        provenance = run.provenance([encoder.source], [(features.path, features.sha256)], dtype=dtype)
        documents.append(task.document(features, target, provenance))
        write_json(target.with_suffix(".json"), documents[-1])
        if not as_json:
            console.result(target)
    if as_json:
        console.document(dumps(documents[0] if len(documents) == 1 else documents))
