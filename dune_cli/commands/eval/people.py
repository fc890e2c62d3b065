"""`dune eval people`: people and their joints against labels, in photos and in 3-D."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.eval import _common as common
from dune_cli.commands.eval._common import BenchmarkOutput, SetOptions
from dune_cli.commands.human import BUNDLED, SHORT_NAMES, BodyOptions
from dune_cli.commands.options import ComputeOptions, ModelOptions, option
from dune_cli.provenance import Run, sha256_of


@options.group("Input")
class PeopleSets(SetOptions):
    sets: tuple[str, ...] = options.changed(SetOptions, "sets", help="Sets to evaluate: files of ROOT without .json.")
    limit: int | None = option(
        "--limit N", "Maximum number of photos or poses per set, evenly spaced.", options.COUNT, default_text="all"
    )


@options.group("Model")
class PeopleModels(BodyOptions):
    models: tuple[str, ...] = option(
        "--model NAME|FILE",
        "Model: 'bundled', a Multi-HMR name or file, or a head of dune train human. Repeatable.",
        multiple=True,
        default_text="bundled",
    )
    encoder: str | None = options.changed(ModelOptions, "encoder")


@options.verb("people")
def command(
    *,
    root: str = options.argument("ROOT", "Folder with sets of labelled joints, one .json file each."),
    sets: PeopleSets,
    chosen: PeopleModels,
    compute: ComputeOptions,
    output: BenchmarkOutput,
) -> None:
    """Evaluate people and their joints against labels.

    Of joints labelled in photos: the share of people found, and PCK, the share of the 12 joints of arms and legs
    within 0.2 of the torso, and within 0.5 of the head. Joints of people who are not found count as wrong; "PCK of
    found" is over people found by all methods. Of joints in 3-D without photos, Anny is fitted to them and rendered,
    and the rendered body is the truth: MPJPE, PA-MPJPE and PVE in mm.

    The controls: the joints to which the bundled model fits its body, unfitted, and the mean pose of the other labels.

    \b
    Example: dune eval people data/people-joints --limit 100
             dune eval people data/people-joints --model bundled --model multihmr-672-s -o people.json
    """
    target = output.file(".json")
    checks.folder(root)
    names = tuple(dict.fromkeys(SHORT_NAMES.get(name, name) for name in chosen.models or (BUNDLED,)))
    checks.weights(*names)

    from dune_cli.evaluation import people as benchmark
    from dune_cli.tasks import human

    read = benchmark.read_sets(Path(root).expanduser(), sets.sets)
    run = Run()
    with run.stage("load"):
        models = {
            name: human.load_human(name, chosen.body_models, compute.device, compute.dtype, encoder)
            for name, encoder in ((name, None if name == BUNDLED else chosen.encoder) for name in names)
        }
        fitter = human.load_fitter()
    methods = {name: benchmark.run_model(model, name) for name, model in models.items()}
    blocks: dict[str, list[list[str]]] = {}
    rows: list[Any] = []
    for labels in read:
        if labels.photos:
            kept = tuple(labels.photos[k] for k in benchmark.spaced(len(labels.photos), sets.limit))
            labels = replace(labels, photos=kept)
            count, scored = len(kept), benchmark.score_photos(labels, methods)
        else:
            count = len(benchmark.spaced(len(labels.poses), sets.limit))
            scored = benchmark.score_poses(labels, fitter, methods, sets.limit)
        with run.stage("evaluate"):
            done = list(console.progress(scored, labels.name, count, "person"))
        total = (benchmark.total_photos if labels.photos else benchmark.total_poses)(labels, done)
        rows += total
        blocks[labels.name] = (_photo_table if labels.photos else _pose_table)(total)
    sources = [source for model in models.values() for source in model.sources]
    result = {
        "schema": "dune.eval-people/1",
        "data": root,
        "rows": [common.rounded(row, 4) for row in rows],
        "provenance": run.provenance(
            sources, [(one.path, sha256_of(one.path)) for one in read], dtype=compute.dtype, units="shares, mm"
        ),
    }
    output.finish(result, target, common.markdown_blocks(blocks))


def _photo_table(scores: Any) -> list[list[str]]:
    head = ["method", "people", "found", "precision", "PCK@0.2 torso", "PCK@0.5 head", "PCK@0.2 of found"]
    return [head] + [
        [
            s.method,
            str(s.people),
            f"{s.found:.3f}",
            _shown(s.precision),
            _shown(s.pck_torso),
            _shown(s.pck_head),
            _shown(s.pck_found),
        ]
        for s in scores
    ]


def _pose_table(scores: Any) -> list[list[str]]:
    head = ["method", "people", "found", "MPJPE mm", "PA-MPJPE mm", "PVE mm"]
    return [head] + [
        [s.method, str(s.people), f"{s.found:.3f}", *(_shown(mm, 1) for mm in (s.mpjpe_mm, s.pa_mpjpe_mm, s.pve_mm))]
        for s in scores
    ]


def _shown(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
