"""`dune classify`: photos to classes, of ImageNet or of a head of `dune train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import CameraOptions, ComputeOptions, ModelOptions, OutputOptions
from dune_cli.commands.prediction import PredictTask, TaskSettings, head_size, sees_whole
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.shared_backbone import SharedBackboneSlot

PREDICT_TASK = "ClassesTask"
WEIGHTS = (("classes", "dune classify photo.jpg --model NAME", ("dinov2-vits14-linear", "dinov2-vitl14-linear4")),)

NEEDS = ("numpy", "torch", "cv2", "PIL")


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    model: ModelOptions = options.adapt(
        model=options.model_of(
            "DINOv2 ImageNet heads and heads of dune train", default_text=options.BEST_MODEL, heading="Model"
        )
    ),
    size: int | None = options.size_px(
        "Long side of the network input of a head of dune train", default_text="as in its training"
    ),
    top: int = options.option("--top N", "Number of classes per photo.", options.COUNT, 5, heading="Output"),
    compute: ComputeOptions,
    output: OutputOptions = options.adapt(output=options.output_to("a .json file for one photo, or a folder.")),
) -> None:
    """Classify photos into the 1000 classes of ImageNet, or those of a head of dune train.

    Prints probability, class number and name, the most probable class first. The network input of a DINOv2 head is the
    central crop of 224 x 224 px of the photo with a short side of 256 px. A head of dune train gets the whole photo.
    Without DINOv2's weights, the head dune-classify comes with dune: EfficientNet-Lite2.

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
    chosen = model.choose("classify")
    checks.first_photo(paths)

    from dune_cli.checkpoints.loader import load_classifier
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
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
            scores = task.predict(network, photo, top, size)
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


class ClassesTask(PredictTask):
    """The classes of `dune predict`."""

    name = "classes"
    file = "classes.json"
    with_camera = False

    def __init__(self, settings: TaskSettings) -> None:
        self.compute = settings.compute
        self.model = ModelOptions(model=settings.model, encoder=None).choose("classify")

    def load(self) -> None:
        from dune_cli.checkpoints.loader import load_classifier

        self.network = load_classifier(self.model, None, self.compute.device, self.compute.dtype)
        self.sources = self.network.sources
        self.sized = self.whole = sees_whole(self.network)  # a DINOv2 head gets a crop of its own

    def slot(self) -> SharedBackboneSlot | None:
        from dune_cli.models.shared_backbone import head_slot

        return head_slot(self.name, self.network)

    def shared_size(self, photo: Photo, patch: int) -> int | None:
        return head_size(self.network, photo) if self.whole else None

    def predict(self, photo: Photo, cameras: CameraOptions, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        from dune_cli.tasks import classify

        with run.stage("network"):
            scores = classify.predict(self.network, photo, size_px=size)
        return classify.document(photo, scores, {})
