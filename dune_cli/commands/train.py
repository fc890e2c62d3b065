"""`dune train`: heads on a frozen encoder."""

from __future__ import annotations

from typing import Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand


@click.group()
def command() -> None:
    """Train a head on a frozen encoder.

    \b
    Example: dune train matcher --encoder dune-mini --data scenes/ --photos photos/ -o matcher/
    """


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(options.listed(value))


@command.command("matcher", cls=GroupedCommand, headings={"pairs": "Training", "size_px": "Training"})
@click.option("--encoder", required=True, metavar="FILE|NAME", help="The dune-mini (stem xfeat+lite) to train it on.")
@click.option("--data", multiple=True, metavar="DIR", help="A folder of scenes: below it, one folder of photos each.")
@click.option("--photos", multiple=True, metavar="DIR", help="A folder of photos, to be warped.")
@click.option("--labels", metavar="DIR", help="Where the teacher's matches are kept.  [default: labels in -o]")
@click.option(
    "--teacher-minutes",
    type=options.FiniteRange(0),
    metavar="N",
    help="Stop matching scenes by ALIKED + LightGlue after this; 0: take what --labels has.  [default: all scenes]",
)
@click.option("--init", metavar="FILE|NAME", help="A head to go on from.  [default: XFeat + LighterGlue]")
@click.option(
    "--context",
    default="xfeat4,lite4,lite8,tokens",
    show_default=True,
    metavar="LIST",
    callback=_names,
    help="What the head learns to use besides XFeat's descriptors; '' for nothing.",
)
@click.option("--steps", default=5000, show_default=True, type=click.IntRange(1), help="Training steps in all.")
@click.option("--pairs", default=2, show_default=True, type=click.IntRange(1), help="Image pairs a step.")
@click.option(
    "--keypoints", default=1024, show_default=True, type=click.IntRange(1), help="Of each image, in training."
)
@click.option("--max-keypoints", default=2048, show_default=True, type=click.IntRange(1), help="Of each image, in use.")
@click.option("--size", "size_px", default=960, show_default=True, metavar="PX", help="Long side that it works at.")
@click.option("--warped", "warped_share", default=0.4, show_default=True, help="Share of pairs that are warped photos.")
@click.option("--lr", "learning_rate", default=1e-4, show_default=True, help="Peak learning rate.")
@click.option(
    "--prune-below", default=0.05, show_default=True, type=options.FiniteRange(0, 1), help="Matchability; 0: off."
)
@click.option("--held-out", "held_out_fraction", default=0.15, show_default=True, type=options.FiniteRange(0, 0.9))
@click.option(
    "--validate", default="", metavar="LIST", callback=_names, help="Scenes to hold out instead of that share."
)
@click.option("--validation-pairs", default=5, show_default=True, type=click.IntRange(0), help="Of a held-out scene.")
@click.option("--checkpoint-minutes", default=5.0, show_default=True, type=options.FiniteRange(0), help="Between two.")
@click.option("--log-every", default=10, show_default=True, type=click.IntRange(1), metavar="STEPS")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder of the run; the same command goes on there.")
@options.compute
@options.seed
@options.as_json
@options.common
def matcher(output: str, as_json: bool, dtype: str, teacher_minutes: float | None, **settings: Any) -> None:
    """Train the matcher `dune` beyond XFeat + LighterGlue, which it starts from.

    It learns from photos under random homographies and from real scenes, whose matches a teacher (ALIKED + LightGlue)
    finds and structure from motion checks. The folder -o holds checkpoints, log.jsonl, and in the end
    matcher.safetensors, matcher_fp16.safetensors and report.json with the scores on held-out scenes. A killed run goes
    on by the same command, bit for bit.

    \b
    Example: dune train matcher --encoder dune-mini --data scenes/ --photos photos/ -o matcher/
             dune eval pairs data/pairs --matcher dune,xfeat-lighterglue --model matcher/matcher.safetensors
    """
    import math
    from pathlib import Path

    from dune_cli import runtime
    from dune_cli.errors import UserError
    from dune_cli.io.json_files import dumps

    if dtype == "float16":
        raise UserError("--dtype float16 is too narrow for training; allowed: auto, float32, bfloat16")
    checks.weights(settings["encoder"], settings["init"])
    for name in ("data", "photos"):
        for place in settings[name]:
            if not Path(place).expanduser().is_dir():
                raise UserError(f"--{name} {place} is no folder; check the path")

    from dune_cli.training.matcher.config import MatcherConfig
    from dune_cli.training.matcher.finalize import finalize
    from dune_cli.training.matcher.trainer import train

    kind = runtime.pick_dtype(dtype, runtime.pick_device(settings["device"]))
    minutes = math.inf if teacher_minutes is None else teacher_minutes
    config = MatcherConfig(teacher_minutes=minutes, bfloat16=str(kind) == "torch.bfloat16", **settings)
    folder = Path(output).expanduser()
    done = finalize(train(config, folder), folder)
    if as_json:
        console.document(dumps(done.document))
        return
    for name, found in done.document["validation"]["scores"].items():
        console.note(
            f"held-out scenes, {name}: AUC@5/10/20 {found['auc5']:.3f} {found['auc10']:.3f} {found['auc20']:.3f}"
        )
    for path in (done.head, done.head_half, done.report):
        console.result(path)
