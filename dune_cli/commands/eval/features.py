"""`dune eval features`: k-NN, linear probe, cosine to teachers, patch matching; encoders as columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.distill import SourceOptions
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput
from dune_cli.commands.options import SeededOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.evaluation.features import FeatureSource
    from dune_cli.teachers.teacher import Teacher


@options.group("Input")
class FeatureData:
    encoders: tuple[str, ...] = option(
        "--encoders SPEC,...",
        "Columns: encoders as NAME, FILE or timm:MODEL[=FILE], teachers as teacher:NAME[=FILE], and the controls "
        "random:STUDENT|FILE and pixels.",
        options.NameList(),
        required=True,
        heading="Model",
        aliases=["--model"],
    )
    labelled: str | None = option(
        "--labelled DIR", "Folder with a folder of photos for each class, for k-NN and linear probe."
    )
    photos: str | None = option(
        "--photos DIR", "Folder of photos, searched recursively, on which --teachers are predicted."
    )
    teachers: tuple[str, ...] = options.changed(SourceOptions, "teachers", required=False, default=())
    pairs: str | None = option(
        "--posed-pairs DIR", "Folder of photo pairs with pairs.json files, for patch matching.", aliases=["--pairs"]
    )

    def check(self) -> None:
        """DuneError for data, encoders or teachers that are not there."""
        if not (self.labelled or self.photos or self.pairs):
            raise UserError("nothing to score; give --labelled, --posed-pairs, or --photos with --teachers")
        if bool(self.photos) != bool(self.teachers):
            raise UserError("--photos and --teachers belong together: the cosine to those teachers on these photos")

    def check_present(self) -> None:
        """DuneError for folders, encoders or teachers that are not on this machine."""
        for folder in self.folders():
            checks.folder(folder)
        for spec in self.encoders:
            if spec.startswith("teacher:"):
                checks.teachers([spec.removeprefix("teacher:")])
            elif spec != "pixels":
                checks.weights(spec)
        if self.photos:
            checks.teachers(self.teachers)

    def folders(self) -> list[str]:
        """The folders that are given."""
        return [folder for folder in (self.labelled, self.photos, self.pairs) if folder]


@options.group("Advanced")
class FeatureOptions:
    size_px: int = option("--size PX", "Side of the square network input, in pixels.", click.IntRange(14), 224)
    pairs_size_px: int = option(
        "--pairs-size PX", "Long side of the pairs' photos, in pixels.", click.IntRange(32), 480
    )
    pool: str = option(
        "--pool [cls|mean|both]",
        "Global feature: the CLS token, the mean of the patch tokens, or both.",
        default="both",
    )
    k: int = option("--k N", "Number of neighbours of the k-NN classifier.", options.COUNT, 20)
    within_px: tuple[int, ...] = option(
        "--within-px PX,...",
        "Maximum distances of a correct patch match from the epipolar line, in pixels of the network input.",
        options.PixelList(1, example="4,8,16"),
        "4,8,16",
    )
    batch_size: int = option("--batch-size N", "Number of photos per forward pass.", options.COUNT, 16)


@options.verb("features")
def command(*, data: FeatureData, settings: FeatureOptions, compute: SeededOptions, output: BenchmarkOutput) -> None:
    """Evaluate frozen features: k-NN, linear probe, cosine to teachers, patch matching.

    The encoders are the columns. k-NN leaves one photo out, and the linear probe has five folds. A folder with train/
    and val/ uses those instead. Cosines to teachers are those of the projectors' predictions. The linear read-out is
    the share of the variance of a teacher's patch tokens that ridge regression predicts in photos it was not fitted to,
    and needs no projectors. Patch matching counts mutual nearest patches near the true epipolar line.

    \b
    Example: dune eval features --labelled classes/ --encoders student.safetensors,random:dune-mini,pixels
             dune eval features --posed-pairs pairs/ --encoders student.safetensors,teacher:xfeat,pixels -o table.json
             dune eval features --photos photos/ --teachers xfeat,efficientnet-lite2 --encoders student.safetensors
    """
    from dune_cli.provenance import sha256_of

    data.check()
    target = output.file(".json")
    data.check_present()

    from dune_cli.evaluation.features import open_feature_source

    run = Run(seed=compute.seed)
    with run.stage("load"):
        columns = [
            open_feature_source(spec, settings.size_px, compute.seed, compute.device, compute.dtype)
            for spec in data.encoders
        ]
    rows: dict[str, list[Any]] = {}
    if data.labelled:
        with run.stage("labelled"):
            rows |= _labelled(columns, data.labelled, settings, compute.seed)
    sources = [column.source for column in columns]
    if data.photos:
        with run.stage("teachers"):
            loaded = _load_teachers(data.teachers, compute.device, compute.dtype)
            rows |= _teachers(columns, loaded, data.photos, settings)
        sources += [teacher.source for teacher in loaded.values()]
    if data.pairs:
        with run.stage("pairs"):
            rows |= _pairs(columns, data.pairs, settings)
    files = sorted(Path(data.pairs).rglob("pairs.json")) if data.pairs else []
    result = {
        "schema": "dune.eval-features/1",
        "columns": [column.name for column in columns],
        "rows": rows,
        "settings": {
            "size_px": settings.size_px,
            "pairs_size_px": settings.pairs_size_px,
            "pool": settings.pool,
            "k": settings.k,
        },
        "provenance": run.provenance(
            sources,
            [(file, sha256_of(file)) for file in files],
            folders=data.folders(),
            units="shares and cosines have none",
        ),
    }
    output.finish(result, target, _table([column.name for column in columns], rows))


def _labelled(columns: list[FeatureSource], root: str, settings: FeatureOptions, seed: int) -> dict[str, list[Any]]:
    from dune_cli.evaluation import features as benchmark

    data = benchmark.read_labelled_photos(root, seed)
    found = []
    for column in columns:
        bar = console.bar(len(data.paths), column.name, "photo")
        size_px, pool, batch_size = settings.size_px, settings.pool, settings.batch_size
        found.append(benchmark.global_features(column, data.paths, size_px, pool, batch_size, bar.update))
        bar.close()
    near = [benchmark.knn(features, data, settings.k) for features in found]
    line = [benchmark.linear_probe(features, data) for features in found]
    guess = benchmark.majority_class(data)
    count = f"{len(data.classes)} classes, {near[0].photos} photos"
    return {
        f"k-NN accuracy ({count}; largest class {guess.accuracy:.3f})": [a.accuracy for a in near],
        f"k-NN balanced accuracy (chance {1 / len(data.classes):.3f})": [a.balanced for a in near],
        "linear probe accuracy": [a.accuracy for a in line],
        "linear probe balanced accuracy": [a.balanced for a in line],
        "standard error of the accuracies": [max(a.error, b.error) for a, b in zip(near, line)],
    }


def _load_teachers(texts: Sequence[str], device: str, dtype: str) -> dict[str, Teacher]:
    from dune_cli import runtime
    from dune_cli.teachers.registry import load_teacher

    on = runtime.pick_device(device)
    loaded = [load_teacher(text, on, runtime.pick_dtype(dtype, on)).to(on) for text in texts]
    return {teacher.name: teacher for teacher in loaded}


def _teachers(
    columns: list[FeatureSource], teachers: dict[str, Teacher], photos: str, settings: FeatureOptions
) -> dict[str, list[Any]]:
    from dune_cli.evaluation.features import teacher_cosines
    from dune_cli.evaluation.teacher_readout import linear_readout
    from dune_cli.io.inputs import IMAGE_SUFFIXES

    paths = sorted(p for p in Path(photos).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"--photos {photos} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    rows: dict[str, list[Any]] = {}
    for index, column in enumerate(columns):
        for found in teacher_cosines(column, teachers, paths, settings.size_px, settings.batch_size):
            for label, value in (
                ("cosine", found.cosine),
                ("cosine of the mean feature", found.mean_feature),
                ("cosine, mean removed", found.standardised),
            ):
                rows.setdefault(f"{found.teacher} {found.kind}: {label}", [None] * len(columns))[index] = value
    readout = linear_readout(columns, teachers, paths, settings.size_px, settings.batch_size)
    return rows | {f"{name} patch: variance read out linearly": values for name, values in readout.items()}


def _pairs(columns: list[FeatureSource], root: str, settings: FeatureOptions) -> dict[str, list[Any]]:
    from dune_cli.evaluation.pairs import read_pairs
    from dune_cli.evaluation.patch_matching import match_patches

    pairs = read_pairs(root)
    found = [match_patches(column, pairs, settings.pairs_size_px, settings.within_px) for column in columns]
    rows = {f"mutual nearest patches, share ({len(pairs)} pairs)": [score.mutual for score in found]}
    for limit in settings.within_px:
        rows[f"of them within {limit} px of the line"] = [score.near[limit] for score in found]
        rows[f"random patches within {limit} px"] = [score.random_near[limit] for score in found]
    return rows


def _table(columns: list[str], rows: dict[str, list[Any]]) -> str:
    cells = [[name, *("-" if value is None else f"{value:.3f}" for value in values)] for name, values in rows.items()]
    return common.markdown(["", *columns], cells)
