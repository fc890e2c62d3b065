"""`dune classify`: photos to ImageNet classes."""

from __future__ import annotations

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import ComputeOptions, ModelOptions, OutputOptions

WEIGHTS = (("classes", "dune classify photo.jpg --model NAME", ("dinov2-vits14-linear", "dinov2-vitl14-linear4")),)

CANDIDATES = tuple(  # for a default model, best first
    f"dinov2-vit{letter}14{registers}-{head}"
    for letter in "glbs"
    for registers in ("-reg", "")
    for head in ("linear4", "linear")
)
ADVICE = "dinov2-vits14-linear"  # what to pull when none is here


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    model: ModelOptions = options.adapt(
        model=options.model_of("DINOv2 ImageNet heads", default_text=options.BEST_MODEL, heading="Model")
    ),
    top: int = options.option("--top N", "Number of classes per photo.", options.COUNT, 5, heading="Output"),
    compute: ComputeOptions,
    output: OutputOptions = options.adapt(output=options.output_to("a .json file for one photo, or a folder.")),
) -> None:
    """Classify photos into the 1000 classes of ImageNet.

    Prints probability, class number and name, the most probable class first. The short side of the photo is resized to
    256 px, and the network input is the central crop of 224 x 224 px.

    \b
    Example: dune classify photo.jpg
             dune classify photos/ --model dinov2-vitb14-linear4 --json
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import targets

    paths = expand(photos)
    files = [None] * len(paths)
    if output.output is not None:
        files = targets(paths, output.output, None, ("json",), output.overwrite)
    chosen = model.choose("classify", CANDIDATES, ADVICE)

    from dune_cli.checkpoints.loader import load_classifier
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks import classify as task

    run = Run()
    with run.stage("load"):
        network = load_classifier(chosen, model.encoder, compute.device, compute.dtype)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")
    documents = []
    for path, target in zip(console.progress(paths, "classify", unit="photo"), files):
        with run.stage("read"):
            photo = read_photo(path)
        with run.stage("network"):
            scores = task.predict(network, photo, top)
        if scores[0].name is None:
            console.note(f"no list of names fits the {network.classes} classes of {network.source.name}")
        provenance = run.provenance(network.sources, [(photo.path, photo.sha256)], dtype=compute.dtype)
        documents.append(task.document(photo, scores, provenance))
        if target is not None:
            write_json(target, documents[-1])
        head = [f"{path}:"] if len(paths) > 1 else []
        lines = [f"{score.score:.4f}  {score.index:4d}  {score.name or ''}".rstrip() for score in scores]
        output.print_lines(*head, *lines)
    output.print_json(documents)
