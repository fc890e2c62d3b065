"""`dune mapfree`: poses of a Map-free data set as a submission ZIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError

if TYPE_CHECKING:
    from dune_cli.sfm.relative_pose import PairBackend, SolverConfig

SPLITS = ("train", "val", "test")


@click.command(cls=GroupedCommand, short_help="Poses of a Map-free data set as a submission ZIP.")
@click.argument("root")
@click.option("--split", type=click.Choice(SPLITS), default="val", show_default=True, help="Folder below ROOT.")
@click.option("--model", metavar="NAME|FILE", help="Two-view model (MASt3R, DUNE + MASt3R): poses in metres.")
@click.option("--encoder", metavar="NAME|FILE", help="The DUNE encoder of a DUNE + MASt3R model.")
@click.option(
    "--matcher",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Without --model: auto (the best one present), sift, xfeat-lighterglue, aliked-lightglue. Knows no lengths.",
)
@click.option(
    "--unit-translation",
    is_flag=True,
    help="Let a matcher, which knows no lengths, write translations of length 1 m. Such poses are not metric.",
)
@click.option(
    "--solver",
    type=click.Choice(["pnp", "essential"]),
    help="pnp: the query's pixels on the reference's points in metres; essential: the epipolar geometry, its length "
    "from these points.  [default: pnp with --model]",
)
@options.output(True, "The submission, a .zip. Beside it a folder .zip.work holds what is done until it is finished.")
@options.size
@options.seed
@options.compute
@options.as_json
@options.common
def command(
    root: str,
    split: str,
    model: str | None,
    encoder: str | None,
    matcher: str,
    unit_translation: bool,
    solver: str | None,
    output: str,
    overwrite: bool,
    size: int | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Pose of every fifth query photo of each scene in ROOT/SPLIT, relative to the scene's reference photo, in metres.

    The ZIP has the official layout, with the number of inliers as confidence; frames without a pose are left out. A run
    that was interrupted goes on where it stopped when it is started again; the result is the same. 'dune eval mapfree'
    scores it.

    \b
    Example: dune mapfree data/mapfree --model dunemast3r-vitb -o submission.zip
             dune mapfree data/mapfree --split test --model mast3r-vitl --solver essential -o submission.zip
    """
    from pathlib import Path

    from dune_cli.commands import reloc
    from dune_cli.evaluation import mapfree_submission as submission
    from dune_cli.io import outputs
    from dune_cli.io.json_files import dumps
    from dune_cli.provenance import Run

    checks.model_options(model, matcher, encoder, size)
    if model is None and not unit_translation:
        raise UserError(
            "a matcher knows no lengths, and the benchmark is in metres: give a two-view --model; with "
            "--unit-translation it writes translations of length 1 m all the same"
        )
    if model is not None and unit_translation:
        raise UserError("--unit-translation is for matchers; a two-view --model knows lengths: leave it out")
    if solver == "pnp" and model is None:
        raise UserError("--solver pnp needs points in metres: give a two-view --model")
    target = outputs.check_output(output, (".zip",), overwrite)
    folder = Path(root).expanduser() / split
    scenes = submission.read_scenes(folder)
    checks.weights(model, encoder)
    checks.matchers([matcher] if model is None else [])

    from dune_cli.sfm.relative_pose import SolverConfig

    run = Run(seed=seed)
    with run.stage("load"):
        sight = reloc.load_sight(model, encoder, matcher, size, device, dtype)
    if unit_translation:
        console.note("translations have length 1 m: these poses are not metric, only their directions mean something")
    config = SolverConfig(solver or ("essential" if model is None else "pnp"), seed=seed)
    work = submission.SubmissionProgress(target, _settings(folder, sight, config, size, device, dtype), overwrite)
    poses = {}
    with run.stage("relocalize"):
        for scene in scenes:
            done = work.done(scene)
            left = len(scene.queries) - len(done)
            new = submission.relocalize_scene(scene, sight, config, done)
            for name, line in console.progress(new, scene.name, total=left, unit="frame"):
                work.add(scene.name, name, line)
                done[name] = line
            poses[scene.name] = {name: done[name] for name in scene.queries}
            found = sum(line is not None for line in poses[scene.name].values())
            console.note(f"{scene.name} ({len(poses)} of {len(scenes)}): {found} of {len(scene.queries)} frames")
    submission.write_submission(target, poses)
    work.remove()
    if not as_json:
        console.result(target)
        return
    counts = {
        name: {"frames": len(lines), "poses": sum(line is not None for line in lines.values())}
        for name, lines in poses.items()
    }
    provenance = run.provenance([sight.source], [(scene.path / "intrinsics.txt", _hash(scene)) for scene in scenes])
    console.document(
        dumps(
            {
                "schema": "dune.mapfree/1",
                "file": str(target),
                "split": split,
                "scale": "arbitrary" if unit_translation else "metric",
                "solver": config.solver,
                "scenes": counts,
                "provenance": provenance,
            }
        )
    )


def _settings(
    folder: object, sight: PairBackend, config: SolverConfig, size: int | None, device: str, dtype: str
) -> dict[str, object]:
    """What the poses depend on."""
    from pathlib import Path

    from dune_cli import __version__

    return {
        "dune": __version__,
        "data": str(Path(str(folder)).resolve()),
        "weights": sight.source.name,
        "sha256": sight.source.sha256,
        "solver": config.solver,
        "min_confidence": config.min_confidence,
        "seed": config.seed,
        "size": size,
        "device": device,
        "dtype": dtype,
    }


def _hash(scene: object) -> str:
    from dune_cli.provenance import sha256_of

    return sha256_of(scene.path / "intrinsics.txt")
