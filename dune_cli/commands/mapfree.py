"""`dune mapfree`: poses of a Map-free data set as a submission ZIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.matching import MatchingOptions, solver_option
from dune_cli.commands.options import OutputOptions, SeededOptions, option
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.sfm.relative_pose import PairBackend, SolverConfig

SPLITS = ("train", "val", "test")


@options.group("Matching")
class MapfreeMatching(MatchingOptions):
    size: int | None = options.size_px()
    solver: str | None = solver_option()
    unit_translation: bool = option(
        "--unit-translation",
        "Write translations of length 1 m with a matcher, whose scale is unknown. Such poses are not metric.",
    )

    def check(self) -> None:
        """UserError for options that contradict each other."""
        self.check_combination(self.size)
        if self.model is None and not self.unit_translation:
            raise UserError(
                "the scale of a matcher's pose is unknown, and the benchmark is in metres: give a two-view --model; "
                "with --unit-translation translations of length 1 m are written anyway"
            )
        if self.model is not None and self.unit_translation:
            raise UserError("--unit-translation is for matchers; a two-view --model is metric: leave it out")
        if self.solver == "pnp" and self.model is None:
            raise UserError("--solver pnp needs points in metres: give a two-view --model")


@options.verb()
def command(
    *,
    root: str = options.argument("ROOT", "Folder of the data set."),
    split: str = option(f"--split [{'|'.join(SPLITS)}]", "Folder below ROOT.", default="val", heading="Input"),
    matching: MapfreeMatching,
    compute: SeededOptions,
    output: OutputOptions = options.adapt(
        output=options.output_to(
            "the submission as .zip. A folder .zip.work beside it holds the finished frames until the end.",
            required=True,
        )
    ),
) -> None:
    """Estimate the poses of a Map-free data set, as a submission ZIP.

    Poses are in metres, of every fifth query photo of each scene relative to the scene's reference photo. The scenes
    are the folders in ROOT/SPLIT. The ZIP has the official layout, with the number of inliers as confidence. Frames
    without a pose are left out. An interrupted run resumes when it is started again, with the same result. 'dune eval
    mapfree' scores the ZIP.

    \b
    Example: dune mapfree data/mapfree --model dunemast3r-vitb -o submission.zip
             dune mapfree data/mapfree --split test --model mast3r-vitl --solver essential -o submission.zip
    """
    from dune_cli.evaluation import mapfree_submission as submission

    matching.check()
    target = output.file(".zip")
    assert target is not None
    folder = Path(root).expanduser() / split
    scenes = submission.read_scenes(folder)
    matching.check_present()

    from dune_cli.sfm.relative_pose import SolverConfig

    run = Run(seed=compute.seed)
    with run.stage("load"):
        backend = matching.load_pair_backend(compute, matching.size)
    if matching.unit_translation:
        console.note("translations have length 1 m: these poses are not metric, only their directions mean something")
    config = SolverConfig(matching.solver or ("essential" if matching.model is None else "pnp"), seed=compute.seed)
    settings = _settings(folder, backend, config, matching.size, compute)
    work = submission.SubmissionProgress(target, settings, output.overwrite)
    poses = {}
    with run.stage("relocalize"):
        for scene in scenes:
            done = work.done(scene)
            left = len(scene.queries) - len(done)
            new = submission.relocalize_scene(scene, backend, config, done)
            for name, line in console.progress(new, scene.name, total=left, unit="frame"):
                work.add(scene.name, name, line)
                done[name] = line
            poses[scene.name] = {name: done[name] for name in scene.queries}
            count = sum(line is not None for line in poses[scene.name].values())
            console.note(f"{scene.name} ({len(poses)} of {len(scenes)}): {count} of {len(scene.queries)} frames")
    submission.write_submission(target, poses)
    work.remove()
    output.print_lines(target)
    counts = {
        name: {"frames": len(lines), "poses": sum(line is not None for line in lines.values())}
        for name, lines in poses.items()
    }
    document = {
        "schema": "dune.mapfree/1",
        "file": str(target),
        "split": split,
        "scale": "arbitrary" if matching.unit_translation else "metric",
        "solver": config.solver,
        "scenes": counts,
        "provenance": run.provenance([backend.source], _inputs(scenes)),
    }
    output.print_json([document])


def _settings(
    folder: Path, backend: PairBackend, config: SolverConfig, size: int | None, compute: SeededOptions
) -> dict[str, object]:
    """What the poses depend on."""
    from dune_cli import __version__

    return {
        "dune": __version__,
        "data": str(folder.resolve()),
        "weights": backend.source.name,
        "sha256": backend.source.sha256,
        "solver": config.solver,
        "min_confidence": config.min_confidence,
        "seed": compute.seed,
        "size": size,
        "device": compute.device,
        "dtype": compute.dtype,
    }


def _inputs(scenes: Any) -> list[tuple[Path, str]]:
    from dune_cli.provenance import sha256_of

    return [(file, sha256_of(file)) for file in (scene.path / "intrinsics.txt" for scene in scenes)]
