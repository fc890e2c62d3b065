"""`dune reloc`: where one photo was taken, relative to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from dune_cli.tasks.reloc.sight import Shot, Sight


@click.command(short_help="Where a photo was taken, relative to a reference photo.")
@click.argument("query")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option("--model", metavar="NAME|FILE", help="Two-view model (MASt3R, DUNE + MASt3R): poses in metres.")
@click.option("--encoder", metavar="NAME|FILE", help="The DUNE encoder of a DUNE + MASt3R model.")
@click.option(
    "--matcher",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Without --model: auto (the best one present), sift, xfeat-lighterglue, aliked-lightglue.",
)
@click.option(
    "--solver",
    type=click.Choice(["pnp", "essential"]),
    help="pnp: the query's pixels on the reference's points in metres; essential: the epipolar geometry, its length "
    "from these points or --baseline.  [default: pnp where there are such points]",
)
@click.option(
    "--ref-depth",
    "ref_depths",
    multiple=True,
    metavar="FILE",
    help="Depth of the reference, pixel by pixel: 16-bit PNG, or NPZ as dune depth writes it. Once a reference, in "
    "their order.",
)
@click.option(
    "--depth-scale",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Metres = PNG value / N.  [default: what the depth's own JSON says, else 1000]",
)
@click.option(
    "--baseline",
    type=click.FloatRange(0, min_open=True),
    metavar="METRES",
    help="True distance between the two cameras.",
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    metavar="C",
    help="Give out no pose below it.  [default: 0.375]",
)
@options.cameras
@options.size
@options.seed
@options.compute
@options.output(False, "Also write the JSON to this .json file.")
@options.as_json
@options.common
def command(
    query: str,
    references: tuple[str, ...],
    model: str | None,
    encoder: str | None,
    matcher: str,
    solver: str | None,
    ref_depths: tuple[str, ...],
    depth_scale: float | None,
    baseline: float | None,
    min_confidence: float | None,
    intrinsics: str | None,
    fov_deg: float | None,
    size: int | None,
    seed: int,
    device: str,
    dtype: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Rotation and translation of the QUERY photo's camera relative to that of each REFERENCE photo.

    The translation is the query camera's centre in the reference camera's frame (x right, y down, z forward): in metres
    with a two-view --model, --ref-depth or --baseline, else a direction of length 1. With several references the best
    pose comes first in the JSON. Photos of different places, one photo twice, and a camera that only turned (unless
    lengths are known: then the distance is about 0) give no pose: exit code 1 and the reason.

    \b
    Example: dune reloc query.jpg reference.jpg --fov-deg 65
             dune reloc query.jpg reference.jpg --ref-depth reference_depth.png -o pose.json
             dune reloc query.jpg one.jpg two.jpg --model dunemast3r-vitb --json
    """
    from dune_cli.io import atomic
    from dune_cli.io.inputs import expand
    from dune_cli.io.jsons import dumps, write_json
    from dune_cli.provenance import Run

    paths = expand([query]), expand(references)
    if len(paths[0]) != 1:
        raise UserError(f"one query photo is needed, {query} names {len(paths[0])}; name a single file")
    metric_points = model is not None or bool(ref_depths)
    _check_lengths(len(paths[1]), model, matcher, encoder, ref_depths, depth_scale, baseline, solver, size)
    target = atomic.check_output(output, (".json",), overwrite) if output is not None else None

    from dune_cli.tasks.reloc import files, solve

    run = Run(seed=seed)
    with run.stage("read"):
        shots = _shots([*paths[0], *paths[1]], intrinsics, fov_deg, ref_depths, depth_scale)
    with run.stage("load"):
        sight = load_sight(model, encoder, matcher, size, device, dtype)
    config = solve.SolverConfig(
        solver or ("pnp" if metric_points else "essential"),
        baseline,
        solve.MIN_CONFIDENCE if min_confidence is None else min_confidence,
        seed,
    )
    results = []
    with run.stage("look"):
        seen_query = sight.look(shots[0])
    for shot in console.progress(shots[1:], "reloc", unit="reference"):
        with run.stage("look"):
            seen = sight.look(shot)
        with run.stage("match"):
            try:
                common = sight.compare(seen, seen_query)
            except JobFailed as error:
                results.append(solve.failed(shot, shots[0], config, str(error), metric_points))
                continue
        with run.stage("pose"):
            results.append(solve.relocalize(common, config))
    best = files.best_of(results)
    if "default" in (best.query.focal_source, best.reference.focal_source):
        console.note(
            "the focal length is a guess (55 degrees across the long side), and so is the pose; give --intrinsics or "
            "--fov-deg"
        )
    provenance = run.provenance(
        [sight.source],
        [(shot.photo.path, shot.photo.sha256) for shot in shots] + _hashed(ref_depths),
        units="metre" if best.scale == "metric" else "baseline",
        axes="OpenCV: x right, y down, z forward",
    )
    tree = files.document(results, provenance)
    if target is not None:
        write_json(target, tree)
    if as_json:
        click.echo(dumps(tree))
    else:
        _print(results, best, target)
    if not best.success:
        raise JobFailed(best.message if len(results) == 1 else f"none of {len(results)} references: {best.message}")


def _check_lengths(
    references: int,
    model: str | None,
    matcher: str,
    encoder: str | None,
    ref_depths: tuple[str, ...],
    depth_scale: float | None,
    baseline: float | None,
    solver: str | None,
    size: int | None,
) -> None:
    """Options that contradict each other: UserError."""
    check_model(model, matcher, encoder, size)
    ways = {"--model": model, "--ref-depth": ref_depths or None, "--baseline": baseline}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say how long the translation is; give one of them")
    if ref_depths and len(ref_depths) != references:
        raise UserError(f"{len(ref_depths)} depth maps for {references} references; give --ref-depth once for each")
    if depth_scale is not None and not ref_depths:
        raise UserError("--depth-scale belongs to --ref-depth; give both or none")
    if baseline is not None and references > 1:
        raise UserError(f"--baseline is the distance to one reference, {references} were named; name one")
    if solver == "pnp" and model is None and not ref_depths:
        raise UserError("--solver pnp needs points in metres: give --ref-depth of the reference, or a two-view --model")


def check_model(model: str | None, matcher: str, encoder: str | None, size: int | None) -> None:
    """UserError for a matcher beside a model, or for a model's options without one."""
    if model is not None and matcher != "auto":
        raise UserError(f"--model brings its own matching, --matcher {matcher} does not go with it; leave one out")
    for name, value in (("--encoder", encoder), ("--size", size)):
        if value is not None and model is None:
            raise UserError(f"{name} belongs to a two-view --model; name that model, or leave {name} out")


def load_sight(
    model: str | None, encoder: str | None, matcher: str, size: int | None, device: str, dtype: str
) -> Sight:
    """The two-view model, or the matcher, that sees what photos have in common."""
    from dune_cli.tasks.reloc.sight import MatcherSight, TwoViewSight

    if model is not None:
        from dune_cli.checkpoints.load import load_two_view

        network = load_two_view(model, encoder, device, dtype)
        console.note(f"model {network.source.name}, licence {network.source.licence}")
        return TwoViewSight(network, size)
    from dune_cli.matchers import load

    if matcher == "auto":
        matcher, text = load.choose_auto()
        console.note(text)
    return MatcherSight(load.load_matcher(matcher, device, dtype))


def _shots(
    paths: list[Any], intrinsics: str | None, fov_deg: float | None, ref_depths: tuple[str, ...], scale: float | None
) -> list[Shot]:
    """The query and the references with their cameras and depth maps."""
    from dune_cli.io.depth_input import read_depth
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks.reloc.sight import Shot

    photos = [read_photo(path) for path in paths]
    cameras = resolve_intrinsics(photos, intrinsics, fov_deg)
    depths = [None, *(read_depth(path, scale) for path in ref_depths)] + [None] * (len(photos) - 1 - len(ref_depths))
    for photo, depth, name in zip(photos[1:], depths[1:], ref_depths):
        if depth is not None and depth.shape != (photo.height, photo.width):
            raise UserError(
                f"the depth map {name} has {depth.shape[1]} x {depth.shape[0]} px, but {photo.path.name} has "
                f"{photo.width} x {photo.height}; resize one of them so that pixels correspond"
            )
    return [Shot(photo, K, source, depth) for photo, (K, source), depth in zip(photos, cameras, depths)]


def _hashed(names: tuple[str, ...]) -> list[tuple[Any, str]]:
    from pathlib import Path

    from dune_cli.provenance import sha256_of

    return [(path, sha256_of(path)) for path in (Path(name).expanduser() for name in names)]


def _print(results: list[Any], best: Any, target: Any) -> None:
    from dune_cli.tasks.reloc import files

    if best.success or len(results) > 1:
        click.echo("\n".join(files.in_words(result) for result in results))
    if best.success and len(results) > 1:
        click.echo(f"best: {best.reference.name}, confidence {best.confidence:.2f}")
    if target is not None:
        click.echo(target)
