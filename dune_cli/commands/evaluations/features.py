"""`dune eval features`: k-NN, linear probe, cosine to teachers, patch matching; encoders as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.evaluations import shared
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.evaluation.features import FeatureSource
    from dune_cli.teachers.teacher import Teacher


def _distances(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    parts = options.names(ctx, param, value)
    if not parts or not all(part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r}: whole pixels above 0, such as 4,8,16")
    return [int(part) for part in parts]


@click.command("features", cls=GroupedCommand)
@click.option(
    "--model",
    "models",
    required=True,
    callback=options.names,
    metavar="COLUMN,…",
    help="Encoders (NAME, FILE, timm:MODEL[=FILE]); teacher:NAME[=FILE]; controls: random:STUDENT|FILE, pixels.",
)
@click.option("--labelled", metavar="DIR", help="Photos with a sub-folder for each class: k-NN and linear probe.")
@click.option("--photos", metavar="DIR", help="Photos for the cosine to --teachers, searched recursively.")
@click.option(
    "--teachers", callback=options.names, metavar="LIST", help="As for dune distill; for encoders with projectors."
)
@click.option("--pairs", "pairs_root", metavar="DIR", help="Photo pairs with pairs.json files: patch matching.")
@click.option("--size", "size_px", default=224, show_default=True, type=click.IntRange(14), metavar="PX", help="Side.")
@click.option(
    "--pairs-size", "pairs_size_px", default=480, show_default=True, type=click.IntRange(32), metavar="PX",
    help="Long side of the pairs' photos.",
)  # fmt: skip
@click.option("--pool", default="both", show_default=True, type=click.Choice(["cls", "mean", "both"]), help="Token.")
@click.option("--k", default=20, show_default=True, type=click.IntRange(1), help="Neighbours that vote.")
@click.option(
    "--within-px",
    default="4,8,16",
    show_default=True,
    callback=_distances,
    metavar="PX,…",
    help="Near a true line.",
)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Photos at once.")
@options.output(required=False, text="Also write the JSON to this .json file.")
@options.as_json
@options.seed
@options.compute
@options.common
def command(
    models: list[str],
    labelled: str | None,
    photos: str | None,
    teachers: list[str],
    pairs_root: str | None,
    size_px: int,
    pairs_size_px: int,
    pool: str,
    k: int,
    within_px: list[int],
    batch_size: int,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """How much frozen features know: of classes, of teachers, of where things are. Columns are encoders.

    k-NN leaves one photo out, the linear probe has five folds; a folder with train/ and val/ uses those. Cosines are
    of the projectors' predictions. Patch matching: mutual nearest patches within so many pixels (of the network's
    input) of the true epipolar line.

    \b
    Example: dune eval features --labelled classes/ --model student.safetensors,random:dune-mini,pixels
             dune eval features --pairs pairs/ --model student.safetensors,teacher:xfeat,pixels -o table.json
             dune eval features --photos photos/ --teachers xfeat,efficientnet-lite2 --model student.safetensors
    """
    from pathlib import Path

    from dune_cli.io import json_files, outputs
    from dune_cli.provenance import Run, sha256_of

    if not (labelled or photos or pairs_root):
        raise UserError("nothing to score; give --labelled, --pairs, or --photos with --teachers")
    if bool(photos) != bool(teachers):
        raise UserError("--photos and --teachers belong together: the cosine to those teachers on these photos")
    target = outputs.check_output(output, [".json"], overwrite) if output else None
    for place in (labelled, photos, pairs_root):
        if place and not Path(place).expanduser().is_dir():
            raise UserError(f"{place} is no folder; check the path")
    checks.columns(models)
    if photos:
        checks.teachers(teachers)

    from dune_cli.evaluation.features import open_feature_source

    run = Run(seed=seed)
    with run.stage("load"):
        columns = [open_feature_source(spec, size_px, seed, device, dtype) for spec in models]
    rows: dict[str, list[Any]] = {}
    if labelled:
        with run.stage("labelled"):
            rows |= _labelled(columns, labelled, size_px, pool, k, batch_size, seed)
    sources = [column.source for column in columns]
    if photos:
        with run.stage("teachers"):
            loaded = _load_teachers(teachers, device, dtype)
            rows |= _teachers(columns, loaded, photos, size_px, batch_size)
        sources += [teacher.source for teacher in loaded.values()]
    if pairs_root:
        with run.stage("pairs"):
            rows |= _pairs(columns, pairs_root, pairs_size_px, within_px)
    content = {
        "schema": "dune.eval-features/1",
        "columns": [column.name for column in columns],
        "rows": rows,
        "settings": {"size_px": size_px, "pairs_size_px": pairs_size_px, "pool": pool, "k": k},
        "provenance": run.provenance(
            sources,
            [(file, sha256_of(file)) for file in sorted(Path(pairs_root).rglob("pairs.json"))] if pairs_root else [],
            folders=[folder for folder in (labelled, photos, pairs_root) if folder],
            units="shares and cosines have none",
        ),
    }
    if target:
        json_files.write_json(target, content)
    console.document(json_files.dumps(content) if as_json else _table([column.name for column in columns], rows))


def _labelled(
    columns: list[FeatureSource], root: str, size_px: int, pool: str, k: int, batch_size: int, seed: int
) -> dict[str, list[Any]]:
    from dune_cli.evaluation import features as benchmark

    data = benchmark.read_labelled_photos(root, seed)
    found = []
    for column in columns:
        bar = console.bar(len(data.paths), column.name, "photo")
        found.append(benchmark.global_features(column, data.paths, size_px, pool, batch_size, bar.update))
        bar.close()
    near = [benchmark.knn(features, data, k) for features in found]
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


def _load_teachers(texts: list[str], device: str, dtype: str) -> dict[str, Teacher]:
    from dune_cli import runtime
    from dune_cli.teachers.registry import load_teacher

    where = runtime.pick_device(device)
    loaded = [load_teacher(text, where, runtime.pick_dtype(dtype, where)).to(where) for text in texts]
    return {teacher.name: teacher for teacher in loaded}


def _teachers(
    columns: list[FeatureSource], teachers: dict[str, Teacher], photos: str, size_px: int, batch_size: int
) -> dict[str, list[Any]]:
    from pathlib import Path

    from dune_cli.evaluation.features import teacher_cosines
    from dune_cli.io.inputs import IMAGE_SUFFIXES

    paths = sorted(p for p in Path(photos).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"--photos {photos} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    rows: dict[str, list[Any]] = {}
    for index, column in enumerate(columns):
        for found in teacher_cosines(column, teachers, paths, size_px, batch_size):
            for label, value in (
                ("cosine", found.cosine),
                ("cosine of the mean feature", found.mean_feature),
                ("cosine, mean removed", found.standardised),
            ):
                rows.setdefault(f"{found.teacher} {found.kind}: {label}", [None] * len(columns))[index] = value
    if not rows:
        raise UserError("--teachers: no column has projectors that predict teachers; name a distilled encoder")
    return rows


def _pairs(columns: list[FeatureSource], root: str, size_px: int, within_px: list[int]) -> dict[str, list[Any]]:
    from dune_cli.evaluation.pairs import read_pairs
    from dune_cli.evaluation.patch_matching import match_patches

    pairs = read_pairs(root)
    found = [match_patches(column, pairs, size_px, within_px) for column in columns]
    rows = {f"mutual nearest patches, share ({len(pairs)} pairs)": [score.mutual for score in found]}
    for limit in within_px:
        rows[f"of them within {limit} px of the line"] = [score.near[limit] for score in found]
        rows[f"random patches within {limit} px"] = [score.random_near[limit] for score in found]
    return rows


def _table(columns: list[str], rows: dict[str, list[Any]]) -> str:
    cells = [["", *columns]]
    cells += [[name, *("-" if value is None else f"{value:.3f}" for value in values)] for name, values in rows.items()]
    return "\n".join(shared.text_table(cells))
