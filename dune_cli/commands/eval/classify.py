"""`dune eval classify`: classes of whole photos against the names of their folders."""

from __future__ import annotations

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.options import ComputeOptions, option
from dune_cli.provenance import Run


@options.group("Input")
class ClassifyEvalOptions:
    models: tuple[str, ...] = option(
        "--model NAME|FILE",
        "Model: classification head to evaluate. Repeatable.",
        multiple=True,
        default_text=options.BEST_MODEL,
    )
    encoder: str | None = option("--encoder NAME|FILE", "Encoder of the heads.", default_text="by their names")


@options.verb("classify")
def command(
    *,
    root: str = options.argument("DATA", "Folder with a folder of photos for each class."),
    chosen: ClassifyEvalOptions,
    compute: ComputeOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate the classes of whole photos against the names of their folders.

    A folder is called by a class of the model, or for ImageNet's classes by a name or WordNet id. The table gives the
    shares of photos whose class is the first, and among the first five, and the mean of the first over the classes. The
    controls are chance and the most frequent class.

    \b
    Example: dune eval classify imagenet-val/
             dune eval classify birds/ --model birds-head/head.safetensors
    """
    target = output.file(".json")
    checks.folder(root)
    names = chosen.models or (options.ModelOptions().choose("classify"),)
    checks.weights(*names, chosen.encoder)

    from dune_cli.checkpoints.loader import load_classifier
    from dune_cli.evaluation import classification as benchmark
    from dune_cli.training.heads.datasets import read_datasets

    dataset = read_datasets("classification", [root])
    run = Run()
    with run.stage("load"):
        models = {name: load_classifier(name, chosen.encoder, compute.device, compute.dtype) for name in names}
    with run.stage("evaluate"):
        photos = console.progress(benchmark.rank_photos(dataset, models), "classify", len(dataset.examples), "photo")
        scores = benchmark.total_scores(dataset, list(photos))
    sources = [source for model in models.values() for source in model.sources]
    result = {
        "schema": "dune.eval-classify/1",
        "data": root,
        "classes": list(dataset.classes),
        "rows": [common.rounded(score) for score in scores],
        "provenance": run.provenance(sources, [], dtype=compute.dtype, units="shares"),
    }
    rows = [[s.method, str(s.photos), f"{s.top1:.3f}", f"{s.top5:.3f}", f"{s.mean_over_classes:.3f}"] for s in scores]
    output.finish(result, target, common.markdown(["method", "photos", "top-1", "top-5", "mean over classes"], rows))
