"""`dune segment`: photos to class maps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import CameraOptions, ModelOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings, head_size, sees_whole
from dune_cli.commands.preview import PREVIEW, PreviewedOutput
from dune_cli.commands.runtimes import RuntimeOptions
from dune_cli.commands.shards import (
    BatchShardOptions,
    compute_shards,
    each_once,
    row_document,
    stored_weights,
    written,
)
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo, PhotoInfo
    from dune_cli.io.shards.files import Column
    from dune_cli.models.shared_backbone import SharedBackboneSlot
    from dune_cli.tasks.large_folders.pipeline import PhotoResult

WEIGHTS = (
    (
        "classes of pixels",
        "dune segment photo.jpg -o classes.png --model NAME",
        ("dinov2-vits14-ade20k-linear", "dinov2-vits14-voc2012-linear"),
    ),
)
NEEDS = ("numpy", "torch", "cv2", "PIL")
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
        "Also write the photo with the colours and names of its classes, as NAME_overlay.png.",
        heading="Output",
        aliases=["--overlay"],
    ),
    compute: RuntimeOptions,
    output: PreviewedOutput = options.adapt(
        output=options.output_to("a .png file for one photo, or a folder.", required=True)
    ),
    shards: BatchShardOptions,
) -> None:
    """Segment photos into a class for every pixel.

    Writes an 8-bit palette PNG whose pixel values are class numbers. A JSON file beside each lists the classes of the
    photo, with their colours and shares of the pixels. Names and colours come from the weight file where it has them.
    Without downloads, the head dune-segment comes with dune: ADE20K's 31 commonest classes.

    --shards writes the class maps of large folders as WebDataset tar files, which hold a PNG and a JSON file for each
    photo. The same command goes on after a kill, and torchrun or --engine ray spread it over GPUs and machines.

    \b
    Example: dune segment photo.jpg -o classes.png --color-overlay
             dune segment photos/ -o classes/ --model dinov2-vits14-voc2012-ms --no-preview
             dune segment photos/ -o classes/ --shards
    """
    if shards.wanted:
        shards.refuse_with(color_overlay=overlay, preview=output.preview, runtime=compute.other_runtime)
        chosen, encoder = stored_weights(model.choose("segment"), model.encoder)
        verb = SegmentShards(chosen or "", encoder, size, scales, compute.dtype, shards.batch_size)
        return compute_shards(verb, photos, shards, compute, output)
    from dune_cli.io.inputs import expand
    from dune_cli.io.outputs import sibling, targets

    paths = expand(photos)
    preview = output.wants_preview(".png", pictured=overlay)
    beside = (".json", *[OVERLAY] * overlay, *[PREVIEW] * preview)
    files = targets(paths, output.output, None, ("png",), output.overwrite, beside)
    chosen = model.choose("segment")
    device, dtype = compute.placed
    checks.first_photo(paths)

    from dune_cli.checkpoints.loader import load_segmenter
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks import segment as task

    run = Run()
    with run.stage("load"):
        network, number_type = compute.apply(load_segmenter(chosen, model.encoder, device, dtype), "segment", run)
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
        console.note(f"{path.name}: {task.summary(result)}")
        provenance = run.provenance(network.sources, [(photo.path, photo.sha256)], **number_type)
        documents.append(task.document(result, target, picture, provenance))
        if preview:
            from dune_cli import previews

            shown = previews.save(previews.picture(result), sibling(target, PREVIEW))
            documents[-1]["preview"] = shown
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
        self.pictured = (result,)
        return segment.document(result, path, None, {})


@dataclass(frozen=True)
class SegmentShards:
    """Class maps in shards: a PNG and a JSON file for each photo."""

    model: str
    encoder: str | None
    size: int | None
    scales: int
    dtype: str
    batch_size: int

    name = "segment"
    kind = "tar"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str) -> SegmentShardNetwork:
        from dune_cli.checkpoints.loader import load_segmenter

        return SegmentShardNetwork(load_segmenter(self.model, self.encoder, device, self.dtype), self)


class SegmentShardNetwork:
    """A segmentation model as shards use it."""

    columns: Sequence[Column] = ()
    keeps_pixels = False

    def __init__(self, network: Any, verb: SegmentShards) -> None:
        self.network, self.verb, self.sources = network, verb, network.sources
        self.is_head = sees_whole(network)

    def prepare(self, photo: Photo) -> tuple[Hashable, Any]:
        from dune_cli.sfm.class_maps import class_input

        if not self.is_head:
            return None, photo
        prepared = class_input(self.network, photo.rgb, self.verb.size)
        return prepared.image.shape, prepared

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        from dune_cli.sfm.class_maps import class_logits
        from dune_cli.tasks import segment

        if self.is_head:
            return list(zip(inputs, class_logits(self.network, inputs)))
        verb = self.verb
        return each_once(lambda photo: segment.predict(self.network, photo, verb.scales, verb.size), inputs)

    def finish(self, photo: PhotoInfo, result: Any) -> PhotoResult:
        from dune_cli.tasks import segment
        from dune_cli.tasks.large_folders.pipeline import PhotoResult

        if self.is_head:
            result = segment.class_map_of_head(self.network, photo, *result)
        name = "classes.png"
        content, _ = written(name, lambda path: segment.write(result, path))
        return PhotoResult(files={name: content}, document=row_document(segment.document(result, Path(name), None, {})))
