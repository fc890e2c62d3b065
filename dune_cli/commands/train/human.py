"""`dune train human`: a head for people on the features of an encoder."""

from __future__ import annotations

import click

from dune_cli import console
from dune_cli.commands import checks, options, publishing
from dune_cli.commands.options import SeededOptions, option
from dune_cli.commands.publishing import RunOutput
from dune_cli.commands.train._heads import HeadModelOptions, HeadTrainingOptions, LabelledOptions

TEACHER = "dune-people"


@options.group("Input")
class PeoplePhotos:
    """--photos, --synthetic, --views."""

    photos: tuple[str, ...] = option(
        "--photos DIR|FILE",
        "Folder of photos, or a .txt list, with people and without. Repeatable.",
        multiple=True,
    )
    synthetic: int = option(
        "--synthetic N", "Made-up pictures: bodies drawn before the photos without people.", click.IntRange(0), 1000
    )
    views: int = options.changed(LabelledOptions, "views")


@options.group("Model")
class PeopleHeadModel:
    """--encoder, --features, --size."""

    encoder: str = options.changed(HeadModelOptions, "encoder")
    features: tuple[str, ...] = options.changed(HeadModelOptions, "features")
    size_px: int = options.size_px("Side of the square network input", least=64, default=384)


@options.group("Training")
class PeopleHeadTraining(HeadTrainingOptions):
    """The settings of the training."""

    learning_rate: float = options.changed(HeadTrainingOptions, "learning_rate", default=5e-4)


@options.verb("human")
def command(
    *,
    data: PeoplePhotos,
    head: PeopleHeadModel,
    training: PeopleHeadTraining,
    compute: SeededOptions,
    output: RunOutput,
) -> None:
    """Train a head for people on the features of an encoder.

    The head finds people and gives the pose, shape and place of the body Anny, in the manner of Multi-HMR. Photos need
    no labels: dune human --model bundled labels them, and people of whom it is not sure are left out. Made-up pictures
    have bodies in poses of the photos and within joint limits, in painted clothes, before the photos without people.
    Features and labels are computed once. The run folder holds checkpoints and log.jsonl, and at the end
    head.safetensors, head_fp16.safetensors, report.json and report.html. The same command resumes an interrupted run,
    bit for bit.

    \b
    Example: dune train human --photos photos/ -o people-head/
             dune human photo.jpg -o people.obj --model people-head/head.safetensors
             dune eval people data/people-joints --model bundled --model people-head/head.safetensors
    """
    checks.weights(head.encoder.removeprefix("random:"), TEACHER)
    publishing.check(output.push)

    from dune_cli.training.human.config import PeopleHeadTrainingConfig
    from dune_cli.training.human.finalize import finish
    from dune_cli.training.human.trainer import train

    settings = options.values(data, head, training, compute)
    done = finish(train(PeopleHeadTrainingConfig(**settings), output.folder), output.folder)
    publishing.push(output.push, (done.head, done.head_half), done.document)
    output.print_json([done.document])
    if output.as_json:
        return
    for kind, scores in done.document["held_out"].items():
        console.note(f"held-out {kind}: " + ", ".join(f"{name} {value:g}" for name, value in scores.items()))
    output.print_lines(done.head, done.head_half, done.report_json, done.report_html)
