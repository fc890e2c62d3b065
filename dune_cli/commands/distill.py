"""`dune distill`: co-distil one encoder from heterogeneous teachers."""

from __future__ import annotations

from typing import Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

SHARING = ("none", "lowest_loss", "own_data", "own+generic_data")


@click.command(cls=GroupedCommand, headings={"size_px": "Training", "batch_size": "Training"})
@click.option(
    "--teachers",
    required=True,
    metavar="LIST",
    help="Comma-separated NAME, NAME=FILE or timm:MODEL, such as dinov2,mast3r,multihmr or xfeat,efficientnet-lite2.",
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="[TEACHER=]SOURCE",
    help="A folder, a .txt list of paths, or .tar shards (also s3://, https://); may be given several times.",
)
@click.option(
    "--student",
    default="dune-vits14",
    show_default=True,
    metavar="NAME",
    help="dune-vits14, dune-vitb14, dune-mini, vit:WIDTHxDEPTH, or timm:MODEL.",
)
@click.option("--init", metavar="NAME|FILE", help="Weights that the student starts from (stage two of the recipe).")
@click.option("--size", "size_px", default=336, show_default=True, metavar="PX", help="Side of the square crops.")
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1), help="Training steps in all.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1), help="Images a step, all ranks.")
@click.option("--accumulate", default=1, show_default=True, type=click.IntRange(1), help="Parts of a batch, in turn.")
@click.option("--lr", "learning_rate", default=3e-4, show_default=True, help="Peak, for a batch of 256; it scales.")
@click.option("--sharing", default="lowest_loss", show_default=True, type=click.Choice(SHARING), help="Strategy.")
@click.option(
    "--drop-probability", default=0.5, show_default=True, type=options.FiniteRange(0, 1), help="Of lowest_loss."
)
@click.option(
    "--projector",
    default="tp",
    show_default=True,
    type=click.Choice(["tp", "sp", "lp"]),
    help="Transformer block (the paper's), MLP, or ladder of MLPs.",
)
@click.option(
    "--norm",
    default="mean-std",
    show_default=True,
    type=click.Choice(["mean-std", "phi-s"]),
    help="How teachers' outputs are standardised.",
)
@click.option(
    "--held-out",
    "held_out_fraction",
    default=0.03,
    show_default=True,
    type=options.FiniteRange(0, 0.9),
    help="Share of photos kept from training, for the scores.",
)
@click.option("--photometric/--no-photometric", default=True, show_default=True, help="Colour, blur, solarise.")
@click.option("--cache", metavar="DIR", help="Compute teacher outputs once, for --crops fixed crops a photo.")
@click.option("--crops", default=4, show_default=True, type=click.IntRange(1), help="Fixed crops a photo with --cache.")
@click.option("--compile", "compile_student", is_flag=True, help="torch.compile the student.")
@click.option("--fsdp", is_flag=True, help="With torchrun: shard the student (FSDP2) instead of copying it (DDP).")
@click.option("--checkpoint-minutes", default=10.0, show_default=True, type=options.FiniteRange(0), help="Between two.")
@click.option("--log-every", default=10, show_default=True, type=click.IntRange(1), metavar="STEPS")
@click.option("--logger", type=click.Choice(["tensorboard"]), help="Write the log there, too (needs its package).")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Threads that load photos.")
@click.option("--resume", is_flag=True, help="Demand a run in -o to go on with (without it, one is begun if absent).")
@click.option("--preflight", is_flag=True, help="Time four steps, print hours, memory and disk, and stop.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder of the run; the same command goes on there.")
@options.compute
@options.seed
@options.as_json
@options.common
def command(
    teachers: str,
    data: tuple[str, ...],
    output: str,
    resume: bool,
    preflight: bool,
    compile_student: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Co-distil one student from several frozen teachers on unlabelled photos (DUNE's recipe).

    The folder -o holds checkpoints, log.jsonl, and in the end student.safetensors, student_fp16.safetensors,
    report.json and report.html. A killed run goes on by the same command, bit for bit. Several GPUs or processes:
    start it with torchrun.

    \b
    Example: dune distill --teachers dinov2,mast3r,multihmr --data photos/ -o student/
             dune distill --teachers xfeat,efficientnet-lite2 --data photos/ --student dune-mini:xfeat+lite \\
                          --size 224 --batch-size 32 --cache cache/ -o mini/
             torchrun --nproc-per-node 8 -m dune_cli.cli distill --teachers … --data … -o student/
    """
    from dataclasses import asdict
    from pathlib import Path

    from dune_cli.io.json_files import dumps
    from dune_cli.training.distill.config import DistillConfig

    names = tuple(name.strip() for name in teachers.split(",") if name.strip())
    config = DistillConfig(teachers=names, data=data, compile=compile_student, **settings)
    folder = Path(output).expanduser()
    if resume and not (folder / "config.json").exists():
        raise UserError(f"--resume: {folder} holds no run; leave --resume out to begin one")
    checks.teachers(names)
    checks.data(data, names)
    checks.weights(settings["init"])

    from dune_cli.training.distill.distiller import distill
    from dune_cli.training.distill.finalize import finalize
    from dune_cli.training.distill.preflight import preflight as estimate

    if preflight:
        console.document(dumps(asdict(estimate(config, folder))))
        return
    result = distill(config, folder)
    if not result.is_main:
        return
    if result.cache_bytes is not None:
        console.note(
            f"teacher cache: {result.cache_bytes / 1e6:.1f} MB, ready after {result.cache_seconds:.1f} s; "
            f"the steps then took {result.seconds:.1f} s without any teacher"
        )
    done = finalize(result, folder)
    if done.document["photos"]["broken_count"]:
        console.note(f"{done.document['photos']['broken_count']} photos could not be read; the report lists them")
    if as_json:
        console.document(dumps(done.document))
        return
    for score in done.scores:
        console.note(
            f"held out, {score.teacher} {score.kind}: cosine {score.student:.3f} "
            f"(untrained {score.untrained:.3f}, mean feature {score.mean_feature:.3f})"
        )
    for path in (done.student, done.student_half, done.report_json, done.report_html):
        console.result(path)
