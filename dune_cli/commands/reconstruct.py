"""`dune reconstruct`: two photos to a 3-D scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import options
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from dune_cli.provenance import Run
    from dune_cli.tasks.reconstruct.scene import Scene


@click.command(short_help="Two photos to a 3-D scene (PLY, OBJ, GLB, NPZ, COLMAP).")
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO PHOTO")
@options.output(
    True,
    "The scene: .ply (points), .glb (surface, cameras), .obj (surface) or .npz (maps); a .json of that name beside it.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "matches", "pointmap"]),
    default="auto",
    show_default=True,
    help="pointmap: with a two-view --model; matches: feature matches and stereo, needs no weights. auto: pointmap if "
    "--model is given.",
)
@click.option("--model", metavar="NAME|FILE", help="Two-view model (MASt3R, DUNE + MASt3R): registry name or file.")
@click.option("--encoder", metavar="NAME|FILE", help="The DUNE encoder of a DUNE + MASt3R model.")
@click.option(
    "--matcher",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="For matches: auto (the best one present), sift, xfeat-lighterglue, aliked-lightglue, mast3r (with --model).",
)
@options.cameras
@click.option(
    "--baseline", type=click.FloatRange(0, min_open=True), metavar="METRES", help="True distance between the cameras."
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0),
    help="Leave out points below it.  [default: 1.5 for pointmap (from 1 up), 0 for matches (0 to 1)]",
)
@click.option(
    "--size",
    type=click.IntRange(64),
    metavar="PX",
    help="Long side in pixels: of the network input (pointmap) or the dense map (matches).  [default: the model's "
    "own; the photo's, at most 1600]",
)
@click.option("--colmap", metavar="DIR", help="Also write a COLMAP model into this folder.")
@click.option(
    "--colmap-format",
    type=click.Choice(["binary", "text"]),
    default="binary",
    show_default=True,
    help="Format of the COLMAP model.",
)
@options.seed
@options.compute
@options.as_json
@options.common
def command(
    photos: tuple[str, ...],
    output: str,
    overwrite: bool,
    method: str,
    model: str | None,
    encoder: str | None,
    matcher: str,
    intrinsics: str | None,
    fov_deg: float | None,
    baseline: float | None,
    min_confidence: float | None,
    size: int | None,
    colmap: str | None,
    colmap_format: str,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Two photos of one place to cameras and a coloured 3-D scene.

    The world is the first camera: x right, y down, z forward. Lengths are metres with a two-view model or --baseline,
    else the distance between the cameras is 1. Exits with 1 and the reason for photos that give no scene.

    \b
    Examples:
      dune reconstruct left.jpg right.jpg -o scene.ply
      dune reconstruct left.jpg right.jpg -o scene.glb --fov-deg 65 --baseline 0.2 --colmap model/
      dune reconstruct left.jpg right.jpg -o scene.ply --model mast3r.pth
    """
    from dune_cli.io import atomic
    from dune_cli.io.inputs import expand
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.jsons import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run
    from dune_cli.tasks.reconstruct import export

    method = _method(method, model, encoder, matcher)
    paths = expand(photos)
    if len(paths) != 2:
        raise UserError(
            f"two photos are needed, got {len(paths)}; name two images of one place (more than two views come in a "
            "later release)"
        )
    target = atomic.check_output(output, export.SUFFIXES, overwrite)
    beside = atomic.check_output(target.with_suffix(".json"), (".json",), overwrite)
    folder = atomic.check_output_folder(colmap, overwrite) if colmap is not None else None
    if folder is not None and paths[0].name == paths[1].name:
        raise UserError(f"--colmap needs photos of different names, got {paths[0].name} twice; rename one")

    if method == "matches" or folder is not None:
        load_pycolmap()
    run = Run(seed=seed)
    with run.stage("read"):
        images = [read_photo(path) for path in paths]
        cameras = resolve_intrinsics(images, intrinsics, fov_deg)
    shared = {"baseline": baseline, "seed": seed}
    if min_confidence is not None:
        shared["min_confidence"] = min_confidence
    if method == "pointmap":
        scene = _by_pointmap(images, cameras, run, model, encoder, device, dtype, {"size_px": size, **shared})
    else:
        loaded = _matcher(matcher, model, encoder, device, dtype, run)
        scene = _by_matches(images, cameras, run, loaded, {"dense_side_px": size, **shared})
    if not len(scene.cloud()[0]):
        raise JobFailed("no point reaches --min-confidence; lower it")
    _report(scene)

    with run.stage("write"):
        points, mesh = export.write_scene(scene, target)
        if folder is not None:
            export.write_colmap_model(scene, folder, colmap_format == "binary")
    provenance = run.provenance(
        list(scene.sources),
        [(photo.path, photo.sha256) for photo in images],
        units="metre" if scene.scale == "metric" else "baseline",
        axes="OpenCV: x right, y down, z forward" + ("; GLB: y up, z backward" if target.suffix == ".glb" else ""),
    )
    result = export.scene_json(scene, points, mesh, provenance)
    write_json(beside, result)
    written = [target, beside] + ([folder] if folder is not None else [])
    click.echo(dumps(result) if as_json else "\n".join(map(str, written)))


def load_pycolmap() -> None:
    """Imports pycolmap before the work, so that a missing one is named at once. The logging library inside it takes
    over SIGTERM, prints a stack and ends the process; the handler that was there is put back, so that it unwinds."""
    import signal
    import threading

    from dune_cli import optional

    optional.require("pycolmap", "dune reconstruct")
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _method(method: str, model: str | None, encoder: str | None, matcher: str) -> str:
    if encoder is not None and model is None:
        raise UserError("--encoder goes with a two-view --model; name that model, or leave --encoder out")
    if method == "auto":
        method = "pointmap" if model is not None and matcher == "auto" else "matches"
    if method == "pointmap" and model is None:
        raise UserError(
            "--method pointmap needs a two-view --model ('dune weights list' names some); --method matches needs none"
        )
    if method == "pointmap" and matcher != "auto":
        raise UserError(f"--matcher {matcher} goes with --method matches; leave one of them out")
    return method


def _matcher(matcher: str, model: str | None, encoder: str | None, device: str, dtype: str, run: Run) -> Any:
    from dune_cli.matchers import load

    if matcher == "auto" and model is not None:
        matcher = "mast3r"
    elif matcher == "auto":
        matcher, text = load.choose_auto()
        console.note(text)
    with run.stage("load"):
        return load.load_matcher(matcher, device, dtype, model, encoder)


def _by_matches(images: list, cameras: list, run: Run, matcher: Any, settings: dict[str, Any]) -> Scene:
    from dune_cli.tasks.reconstruct import matches

    return matches.reconstruct(images, cameras, matcher, matches.MatchesConfig(**settings), run)


def _by_pointmap(
    images: list,
    cameras: list,
    run: Run,
    model: str | None,
    encoder: str | None,
    device: str,
    dtype: str,
    settings: dict[str, Any],
) -> Scene:
    from dune_cli.checkpoints import load
    from dune_cli.tasks.reconstruct import pointmap

    assert model is not None
    with run.stage("load"):
        network = load.load_two_view(model, encoder, device, dtype)
    console.note(f"model {network.source.name}, licence {network.source.licence}")
    return pointmap.reconstruct(images, cameras, network, pointmap.PointMapConfig(**settings), run)


def _report(scene: Scene) -> None:
    for text in scene.notes:
        console.note(text)
    kind = f"dense, {scene.coverage:.0%} of the map" if scene.is_dense else "matched points only"
    console.note(
        f"{scene.pairs[0].matches} matches, {scene.pairs[0].inliers} inliers, reprojection error "
        f"{scene.reprojection_error_px:.2f} px, parallax {scene.parallax_deg:.2f} deg, {len(scene.cloud()[0])} points "
        f"({kind}), scale {scene.scale}"
    )
