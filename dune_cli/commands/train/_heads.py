"""What `dune train depth`, `segment` and `classify` share: their options and their run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dune_cli import console
from dune_cli.commands import checks, options, publishing
from dune_cli.commands.options import SeededOptions, TrainingOptions, option
from dune_cli.commands.publishing import RunOutput
from dune_cli.errors import UserError


@options.group("Input")
class LabelledOptions:
    """--data, --leave-out, --weight, --validate, --views."""

    data: tuple[str, ...] = option("--data DIR", "Source of labelled photos: a folder. Repeatable.", multiple=True)
    leave_out: tuple[str, ...] = option("--leave-out NAME,...", "Sets of the data to leave out.", options.NameList())
    set_weights: tuple[str, ...] = option(
        "--weight NAME=X", "Weight of a set's loss. Repeatable.", multiple=True, default_text="1 for each set"
    )
    validate: tuple[str, ...] = option(
        "--validate NAME,...", "Sets to hold out, instead of --held-out.", options.NameList()
    )
    views: int = option("--views N", "Views of each photo: the whole one and N - 1 fixed crops.", options.COUNT, 4)


@options.group("Input")
class TaughtOptions(LabelledOptions):
    """The same with --photos and --teacher."""

    photos: tuple[str, ...] = option(
        "--photos DIR|FILE",
        "Folder of photos without labels, or a .txt list, for --teacher. Repeatable.",
        multiple=True,
    )
    teacher: str | None = option("--teacher NAME", "Teacher that labels --photos.")


@options.group("Model")
class HeadModelOptions:
    """--encoder, --head, --features, --size, --tune, --encoder-lr-scale."""

    encoder: str = option("--encoder NAME|FILE", "Encoder whose features the head reads.", default="dune-mini")
    kind: str = option("--head KIND", "Kind of head: linear, mlp or dpt.", default="dpt")
    features: tuple[str, ...] = option(
        "--features NAME,...",
        "Features of the encoder: tokensN and clsN of block N, stem maps such as lite8, mean:NAME.",
        options.NameList(),
        default_text="by the kind of head",
    )
    size_px: int = option(
        "--size PX", "Side of the square with as many pixels as a training image.", click.IntRange(32), 272
    )
    tune: bool = option("--tune", "Train the encoder too. Features are then computed anew in each step.")
    encoder_lr_scale: float = option(
        "--encoder-lr-scale X", "Learning rate of a tuned encoder, relative to --lr.", options.NOT_NEGATIVE, 0.1
    )


@options.group("Training")
class HeadTrainingOptions(TrainingOptions):
    """The settings of the training."""

    steps: int = options.changed(TrainingOptions, "steps", default=2000)
    learning_rate: float = options.changed(TrainingOptions, "learning_rate", default=1e-3)
    held_out_fraction: float = options.changed(TrainingOptions, "held_out_fraction", default=0.1)
    batch_size: int = option("--batch-size N", "Number of views per step.", options.COUNT, 16)
    average: float = option("--average X", "Decay of the averaged weights, which are kept.", float, 0.995)
    evaluate_every: int = option("--evaluate-every N", "Steps between scores on held-out photos.", options.COUNT, 100)
    patience: int = option("--patience N", "Scores without improvement before the run stops.", options.COUNT, 8)
    cache: str | None = option("--cache DIR", "Cache folder of the features.", default_text="cache in the run folder")
    checkpoint_minutes: float = options.changed(TrainingOptions, "checkpoint_minutes", default=5.0)
    log_every: int = options.changed(TrainingOptions, "log_every", default=20)


def run(
    task: str,
    data: LabelledOptions,
    head: HeadModelOptions,
    training: HeadTrainingOptions,
    compute: SeededOptions,
    output: RunOutput,
    **more: Any,
) -> None:
    """Trains the head, writes its files and prints their paths."""
    publishing.check(output.push)
    settings = options.values(data, head, training, compute) | more
    settings["set_weights"] = tuple(map(_weight, data.set_weights))
    for folder in data.data:
        checks.folder(folder, "--data")
    checks.weights(head.encoder.removeprefix("random:"))
    if settings.get("teacher") is not None:
        checks.teachers(["mosaic"] + (["fastdepth"] if settings["teacher"] == "fastdepth" else []))

    from dune_cli.training.heads.config import HeadTrainingConfig
    from dune_cli.training.heads.finalize import finish
    from dune_cli.training.heads.trainer import train

    done = finish(train(HeadTrainingConfig(task, **settings), output.folder), output.folder)
    publishing.push(output.push, (done.head, done.head_half), done.document)
    output.print_json([done.document])
    if output.as_json:
        return
    for line in held_out_lines(done.document["held_out"]):
        console.note(line)
    output.print_lines(done.head, done.head_half, done.report_json, done.report_html)


def _weight(text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        return (name, float(number)) if name and equals else _no_weight(text)
    except ValueError:
        return _no_weight(text)


def _no_weight(text: str) -> tuple[str, float]:
    raise UserError(f"--weight {text!r} is not NAME=X; give a set of the data and a number, such as streets=0.3")


def held_out_lines(scores: Mapping[str, Any]) -> list[str]:
    """The scores of a report in a line or, of depth, in a line a set: "3 held-out photos: top1 0.667, top5 1.000"."""
    count = scores.get("photos")
    if not isinstance(count, int):
        return [f"{name}, {line}" for name, one in scores.items() for line in held_out_lines(one)]
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float)) and name != "photos"}
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
    return [f"{count} held-out {'photo' if count == 1 else 'photos'}: {shown}"]
