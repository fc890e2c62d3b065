"""`dune eval segment`: class maps of single photos against masks, beside what needs no network."""

from __future__ import annotations

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.options import ComputeOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run


@options.group("Input")
class SegmentEvalOptions:
    models: tuple[str, ...] = option(
        "--model NAME|FILE",
        "Model: segmentation head to evaluate. Repeatable.",
        multiple=True,
        default_text=options.BEST_MODEL,
    )
    encoder: str | None = option("--encoder NAME|FILE", "Encoder of the heads.", default_text="by their names")
    teacher: str | None = option(
        "--teacher [mosaic]", "Teacher whose class maps are the truth for photos without masks: mosaic."
    )


@options.verb("segment")
def command(
    *,
    roots: tuple[str, ...] = options.argument(
        "DATA...",
        "Folders of photos with masks, in the layouts of dune train segment. With --teacher: photos, or .txt lists.",
        nargs=-1,
        required=True,
    ),
    chosen: SegmentEvalOptions,
    compute: ComputeOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the class maps of single photos against masks.

    Classes are compared by name. The table gives the mean IoU over the classes of the masks, and the share of pixels
    that are right, with the pixels of all photos pooled. The IoU of each class is in the JSON. The controls are the
    most frequent class, the most frequent class at each place, and MOSAIC where its weights are on this machine.

    \b
    Example: dune eval segment orchard/ --model orchard-head/head.safetensors
             dune eval segment photos/ --teacher mosaic
    """
    target = output.file(".json")
    names = chosen.models or (options.ModelOptions().choose("segment"),)
    checks.weights(*names, chosen.encoder)
    if chosen.teacher is None:
        for root in roots:
            checks.folder(root)
    else:
        checks.teachers([chosen.teacher])

    from dune_cli import runtime
    from dune_cli.checkpoints import registry, weights_folder
    from dune_cli.checkpoints.loader import load_segmenter
    from dune_cli.evaluation import segmentation as benchmark
    from dune_cli.training.heads.datasets import photos_dataset, read_datasets
    from dune_cli.training.heads.labels import LabelTeacher

    device = runtime.pick_device(compute.device)
    run = Run()
    with run.stage("load"):
        teacher = LabelTeacher(chosen.teacher, device) if chosen.teacher else None
        dataset = photos_dataset(roots, chosen.teacher) if chosen.teacher else read_datasets("segmentation", roots)
        models = {name: load_segmenter(name, chosen.encoder, compute.device, compute.dtype) for name in names}
        methods = {name: benchmark.of_model(model, dataset.classes) for name, model in models.items()}
        entry = registry.find("mosaic")
        if teacher is None and entry is not None and weights_folder.find_present(entry) is not None:
            methods["mosaic"] = benchmark.mosaic(dataset.classes, device)
    matrices: dict[str, list] = {}
    with run.stage("evaluate"):
        methods = benchmark.controls(dataset, teacher) | methods
        scored = benchmark.score_photos(dataset, methods, teacher)
        for _, found in console.progress(scored, "segment", len(dataset.examples), "photo"):
            for name, matrix in found.items():
                matrices.setdefault(name, []).append(matrix)
    if not matrices:
        raise UserError("the data have no photos")
    scores = [benchmark.total_score(name, found, dataset.classes) for name, found in matrices.items()]
    sources = [source for model in models.values() for source in model.sources]
    result = {
        "schema": "dune.eval-segment/1",
        "data": list(roots),
        "teacher": chosen.teacher,
        "classes": list(dataset.classes),
        "rows": [common.rounded(score) for score in scores],
        "provenance": run.provenance(sources, [], dtype=compute.dtype, units="shares"),
    }
    rows = [[s.method, str(s.photos), f"{s.mean_iou:.3f}", f"{s.pixel_accuracy:.3f}"] for s in scores]
    output.finish(result, target, common.markdown(["method", "photos", "mean IoU", "pixels right"], rows))
