"""`dune splat`: undistorted photos to Gaussian splats, by a trainer that is installed."""

from __future__ import annotations

from dune_cli.commands import options
from dune_cli.commands.options import COUNT, OutputOptions, option
from dune_cli.provenance import Run

STEPS = 30_000


@options.group("Training")
class SplatOptions:
    trainer: str | None = option(
        "--trainer PROGRAM|FILE",
        "Program that trains: an executable of Brush, or the file of gsplat's examples/simple_trainer.py.",
        default_text="brush, brush_app or brush-cli on PATH",
    )
    steps: int = option("--steps N", "Number of training steps.", COUNT, STEPS)
    seed: int = option("--seed N", "Seed of Brush; gsplat's trainer has its own.", options.SEED, 0, heading="Advanced")


@options.verb()
def command(
    *,
    scene: str = options.argument(
        "FOLDER|SCENE", "Folder that 'dune reconstruct --undistort' has written, or the scene that was written with it."
    ),
    training: SplatOptions,
    output: OutputOptions = options.adapt(
        output=options.output_to("the splats as .ply. A JSON file and the trainer's log are beside it.", required=True)
    ),
) -> None:
    """Train Gaussian splats on undistorted photos, by a trainer that is installed.

    dune trains nothing itself: it starts Brush, or gsplat's example trainer, on the folder with this number of steps,
    all else being the trainer's own default, and takes the splats that it writes. They are in the coordinates of the
    scene. Without a trainer the exit code is 4, and the folder is ready for one. Trainers want a graphics card.

    \b
    Example: dune reconstruct photos/ -o scene.ply --undistort splat/
             dune splat splat/ -o splat.ply
             dune splat scene.json -o splat.ply --steps 7000 --trainer gsplat/examples/simple_trainer.py
    """
    from dune_cli.io.json_files import write_json
    from dune_cli.io.outputs import check_output
    from dune_cli.tasks import splat as task

    target = output.file(".ply")
    assert target is not None
    beside = check_output(target.with_suffix(".json"), (".json",), output.overwrite)
    check_output(target.with_suffix(".log"), (".log",), output.overwrite)
    ready = task.SplatFolder.of(scene)
    trainer = task.find_trainer(ready, training.trainer)
    run = Run(seed=training.seed)
    with run.stage("train", "training"):
        document = task.train(ready, trainer, target, training.steps, training.seed)
    document |= {"provenance": run.provenance([], [])}
    write_json(beside, document)
    output.print_lines(target, beside)
    output.print_json([document])
