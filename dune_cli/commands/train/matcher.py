"""`dune train matcher`: the matcher `dune`, a matching head on a frozen dune-mini."""

from __future__ import annotations

import math

import click

from dune_cli import console
from dune_cli.commands import checks, options, publishing
from dune_cli.commands.options import SeededOptions, TrainingOptions, option
from dune_cli.commands.publishing import RunOutput
from dune_cli.errors import UserError


@options.group("Input")
class SceneOptions:
    data: tuple[str, ...] = option(
        "--scenes DIR",
        "Folder of scenes, with one folder of photos for each. Repeatable.",
        multiple=True,
        aliases=["--data"],
    )
    photos: tuple[str, ...] = option(
        "--photos DIR", "Folder of photos for random homographies. Repeatable.", multiple=True
    )
    labels: str | None = option(
        "--labels DIR", "Cache folder of the teacher's matches.", default_text="labels in the run folder"
    )
    teacher_minutes: float | None = option(
        "--teacher-minutes MINUTES",
        "Minutes that the teacher (ALIKED + LightGlue) may match scenes. 0: only what --labels holds.",
        options.NOT_NEGATIVE,
        default_text="until all scenes are matched",
    )
    validate: tuple[str, ...] = option(
        "--validate NAME,...", "Scenes to hold out, instead of --held-out.", options.NameList()
    )
    validation_pairs: int = option("--validation-pairs N", "Number of pairs per held-out scene.", click.IntRange(0), 5)


@options.group("Model")
class HeadOptions:
    encoder: str = option(
        "--encoder NAME|FILE",
        "Encoder to train on, which is frozen: a dune-mini with the stem xfeat+lite.",
        required=True,
    )
    init: str | None = options.init_from("XFeat + LighterGlue")
    context: tuple[str, ...] = option(
        "--context NAME,...",
        "Features of the encoder that the head uses besides XFeat's descriptors; '' for none.",
        options.NameList(),
        "xfeat4,lite4,lite8,tokens",
    )
    size_px: int = option("--size PX", "Long side of the photos that are matched, in pixels.", int, 960)
    max_keypoints: int = option("--max-keypoints N", "Number of keypoints per image at inference.", options.COUNT, 2048)
    prune_below: float = option(
        "--prune-below X", "Matchability below which keypoints are pruned. 0: none are.", options.FRACTION, 0.05
    )


@options.group("Training")
class MatcherOptions(TrainingOptions):
    """The settings of the training."""

    steps: int = options.changed(TrainingOptions, "steps", default=5000)
    pairs: int = option("--batch-size N", "Number of image pairs per step.", options.COUNT, 2, aliases=["--pairs"])
    keypoints: int = option("--keypoints N", "Number of keypoints per image in training.", options.COUNT, 1024)
    warped_share: float = option(
        "--warped X", "Fraction of the pairs that are photos under random homographies.", float, 0.4
    )
    checkpoint_minutes: float = options.changed(TrainingOptions, "checkpoint_minutes", default=5.0)


@options.verb("matcher")
def command(
    *, scenes: SceneOptions, head: HeadOptions, training: MatcherOptions, compute: SeededOptions, output: RunOutput
) -> None:
    """Train the matcher 'dune', which starts from XFeat + LighterGlue.

    It learns from photos under random homographies, and from scenes. A teacher (ALIKED + LightGlue) matches the photos
    of a scene, and structure from motion verifies its matches. The run folder holds checkpoints and log.jsonl. At the
    end it also holds matcher.safetensors, matcher_fp16.safetensors, and report.json with the scores on held-out scenes.
    The same command resumes an interrupted run, bit for bit.

    \b
    Example: dune train matcher --encoder dune-mini --scenes scenes/ --photos photos/ -o matcher/
             dune eval pairs data/pairs --matchers dune,xfeat-lighterglue --model matcher/matcher.safetensors
    """
    from dune_cli import runtime

    if compute.dtype == "float16":
        raise UserError("--dtype float16 is too narrow for training; allowed: auto, float32, bfloat16")
    checks.weights(head.encoder, head.init)
    publishing.check(output.push)
    for name, folders in (("--scenes", scenes.data), ("--photos", scenes.photos)):
        for folder in folders:
            checks.folder(folder, name)

    from dune_cli.training.matcher.config import MatcherConfig
    from dune_cli.training.matcher.finalize import finalize
    from dune_cli.training.matcher.trainer import train

    settings = options.values(scenes, head, training, compute)
    dtype = runtime.pick_dtype(settings.pop("dtype"), runtime.pick_device(compute.device))
    if scenes.teacher_minutes is None:
        settings["teacher_minutes"] = math.inf
    config = MatcherConfig(bfloat16=str(dtype) == "torch.bfloat16", **settings)
    done = finalize(train(config, output.folder), output.folder)
    publishing.push(output.push, (done.head, done.head_half), done.document)
    output.print_json([done.document])
    if output.as_json:
        return
    for name, scores in done.document["validation"]["scores"].items():
        console.note(
            f"held-out scenes, {name}: AUC@5/10/20 {scores['auc5']:.3f} {scores['auc10']:.3f} {scores['auc20']:.3f}"
        )
    output.print_lines(done.head, done.head_half, done.report)
