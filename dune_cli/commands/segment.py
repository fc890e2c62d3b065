"""`dune segment`: photos to class maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.options import CameraOptions, ComputeOptions, ModelOptions, OutputOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings, head_size, sees_whole
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.shared_backbone import SharedBackboneSlot

WEIGHTS = (
    (
        "classes of pixels",
        "dune segment photo.jpg -o classes.png --model NAME",
        ("dinov2-vits14-ade20k-linear", "dinov2-vits14-voc2012-linear"),
    ),
)
NEEDS = ("numpy", "torch", "timm", "cv2", "PIL")
OVERLAY = "_overlay.png"
PREDICT_TASK = "SegmentationTask"
SCALES = 3


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    model: ModelOptions = options.adapt(
        model=options.model_of("DINOv2 segmentation heads and heads of dune train", default_text=options.BEST_MODEL)
    ),
    size: int | None = options.size_px(
        "Long side that larger photos are reduced to",
        default_text="1280 for DINOv2 heads, as in its training for a head of dune train",
    ),
    scales: int = option(
        "--scales N",
        "Number of scales of a multi-scale (ms) head, each also flipped. The published scores use 5.",
        click.IntRange(1, 5),
        SCALES,
        heading="Model",
    ),
    overlay: bool = option(
        "--color-overlay",
        "Also write the photo with the colours of its classes, as NAME_overlay.png.",
        heading="Output",
        aliases=["--overlay"],
    ),
    compute: ComputeOptions,
    output: OutputOptions = options.adapt(
        output=options.output_to("a .png file for one photo, or a folder.", required=True)
    ),
) -> None:
    """Segment photos into a class for every pixel.

    Writes an 8-bit palette PNG whose pixel values are class numbers. A JSON file beside each lists the classes of the
    photo, with their colours and shares of the pixels. Names and colours come from the weight file where it has them.
    Without downloads, the head dune-segment comes with dune: ADE20K's 31 commonest classes.

    \b
    Example: dune segment photo.jpg -o classes.png --color-overlay
             dune segment photos/ -o classes/ --model dinov2-vits14-voc2012-ms
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import sibling, targets

    paths = expand(photos)
    beside = (".json", OVERLAY) if overlay else (".json",)
    files = targets(paths, output.output, None, ("png",), output.overwrite, beside)
    chosen = model.choose("segment")

    from dune_cli.checkpoints.loader import load_segmenter
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks import segment as task

    run = Run()
    with run.stage("load"):
        network = load_segmenter(chosen, model.encoder, compute.device, compute.dtype)
    console.note(f"{network.source.name}, licence of the weights: {network.source.licence}")
    if not network.class_names:
        console.note(f"{network.source.name} carries no names of its {network.classes} classes: numbers are given")
    documents = []
    for path, target in zip(console.progress(paths, "segment", unit="photo"), files):
        with run.stage("read"):
            photo = read_photo(path)
        result = task.predict(network, photo, scales, size, run)
        picture = sibling(target, OVERLAY) if overlay else None
        with run.stage("write"):
            task.write(result, target)
            if picture is not None:
                task.write_overlay(result, picture)
        provenance = run.provenance(network.sources, [(photo.path, photo.sha256)], dtype=compute.dtype)
        documents.append(task.document(result, target, picture, provenance))
        write_json(sibling(target, ".json"), documents[-1])
        output.print_lines(target)
    output.print_json(documents)


class SegmentationTask(PredictTask):
    """The class map of `dune predict`."""

    name = "segmentation"
    file = "segmentation.png"
    with_camera = False

    def __init__(self, settings: TaskSettings) -> None:
        self.compute = settings.compute
        self.model = ModelOptions(model=settings.model, encoder=None).choose("segment")

    def load(self) -> None:
        from dune_cli.checkpoints.loader import load_segmenter

        self.network = load_segmenter(self.model, None, self.compute.device, self.compute.dtype)
        self.sources = self.network.sources
        self.whole = sees_whole(self.network)

    def slot(self) -> SharedBackboneSlot | None:
        from dune_cli.models.shared_backbone import head_slot

        return head_slot(self.name, self.network)

    def shared_size(self, photo: Photo, patch: int) -> int | None:
        return head_size(self.network, photo) if self.whole else None

    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        from dune_cli.tasks import segment

        result = segment.predict(self.network, photo, SCALES, size, run)
        segment.write(result, path)
        return segment.document(result, path, None, {})
