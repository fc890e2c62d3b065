"""`dune reconstruct`: photos or a video to a 3-D scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.grouped import GroupedCommand
from dune_cli.commands.reconstruct_options import Many, many_options
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from dune_cli.provenance import Run
    from dune_cli.tasks.reconstruct.scene import Scene


@click.command(cls=GroupedCommand, short_help="Photos or a video to a 3-D scene (PLY, OBJ, GLB, NPZ, COLMAP).")
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO|FOLDER|VIDEO...")
@options.output(
    True,
    "The scene: .ply (points; with --mesh a surface), .glb (surface, cameras), .obj (surface) or .npz (maps); a .json "
    "of that name beside it.",
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
    help="For matches: auto (the best one present), dune, sift, xfeat-lighterglue, aliked-lightglue, mast3r (with "
    "--model).",
)
@options.cameras
@click.option(
    "--baseline",
    type=options.FiniteRange(0, min_open=True),
    metavar="METRES",
    help="True distance between the first two cameras.",
)
@click.option(
    "--min-confidence",
    type=options.FiniteRange(0),
    help="Leave out points below it.  [default: 1.5 for pointmap (from 1 up), 0 for matches (0 to 1)]",
)
@click.option(
    "--size",
    type=click.IntRange(64),
    metavar="PX",
    help="Long side in pixels: of the network input (pointmap) or, of two photos, the dense map (matches).  [default: "
    "the model's own; the photo's, at most 1600]",
)
@many_options
@click.option("--colmap", metavar="DIR", help="Also write a COLMAP model into this folder.")
@click.option(
    "--colmap-format",
    type=click.Choice(["binary", "text"]),
    default="binary",
    show_default=True,
    help="Format of the COLMAP model.",
)
@click.option("--transforms", metavar="FILE", help="Also write the cameras as nerfstudio's transforms.json.")
@click.option("--depths", metavar="DIR", help="Also write every view's depth as a 16-bit PNG into this folder.")
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
    many: Many,
    colmap: str | None,
    colmap_format: str,
    transforms: str | None,
    depths: str | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Photos of one place, or a video, to cameras and a coloured 3-D scene.

    The world is the first camera: x right, y down, z forward. Lengths are metres with a two-view model or --baseline,
    else the distance between two cameras that follow one another is 1. Exits with 1 and the reason for photos that
    give no scene. Three photos or more: what was computed is kept in --work, where a second run goes on.

    \b
    Examples:
      dune reconstruct left.jpg right.jpg -o scene.ply
      dune reconstruct photos/ -o scene.ply --quality high --colmap model/ --transforms transforms.json
      dune reconstruct walk.mp4 --fps 3 -o scene.glb --mesh tsdf
      dune reconstruct left.jpg right.jpg -o scene.glb --fov-deg 65 --baseline 0.2
      dune reconstruct left.jpg right.jpg -o scene.ply --model mast3r.pth
    """
    from dune_cli import optional
    from dune_cli.commands import reconstruct_many
    from dune_cli.commands.reconstruct_outputs import check_targets
    from dune_cli.commands.videos import check_fps
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.io.targets import unique_stems
    from dune_cli.provenance import Run

    method = _method(method, model, encoder, matcher)
    paths = expand(photos, videos=True)
    check_fps(many.fps, paths)
    videos = any(map(is_video, paths))
    if len(paths) == 1 and not videos:
        raise UserError(f"two photos are needed, got 1 ({paths[0].name}); name two or more of one place, or a video")
    targets = check_targets(
        output, overwrite, colmap, colmap_format == "binary", transforms, depths, many.mesh is not None
    )
    stems = iter(unique_stems([path for path in paths if is_video(path)]))
    targets.check_photos([path.with_name(f"{next(stems)}_0.jpg") if is_video(path) else path for path in paths])

    checks.weights(model, encoder)
    if method == "matches":
        checks.matchers([matcher])
    if method == "matches" or colmap is not None:
        optional.import_pycolmap("dune reconstruct")
    run = Run(seed=seed)
    shared = {"baseline": baseline, "seed": seed}
    if min_confidence is not None:
        shared["min_confidence"] = min_confidence
    if videos or len(paths) > 2 or many.poses is not None:
        compute = reconstruct_many.Compute(method, model, encoder, matcher, device, dtype, size)
        cameras = (intrinsics, fov_deg)
        done = reconstruct_many.run_many(paths, targets, many, compute, cameras, shared, run)
        if done is None:  # --preflight
            return
        scene, files, facts = done
    else:
        many.say_unused()
        with run.stage("read"):
            images = [read_photo(path) for path in paths]
            Ks = resolve_intrinsics(images, intrinsics, fov_deg)
        if method == "pointmap":
            scene = _by_pointmap(images, Ks, run, model, encoder, device, dtype, {"size_px": size, **shared})
        else:
            loaded = pick_matcher(matcher, model, encoder, device, dtype, run)
            scene = _by_matches(images, Ks, run, loaded, {"dense_side_px": size, **shared})
        files, facts = [(photo.path, photo.sha256) for photo in images], {}
    if not len(scene.cloud()[0]):
        raise JobFailed(_no_points(method, min_confidence))
    _report(scene)
    targets.write(scene, files, run, as_json, facts)


def _no_points(method: str, min_confidence: float | None) -> str:
    """Why a scene without points is none."""
    if min_confidence:
        return f"no point reaches the --min-confidence {min_confidence:g}; lower it"
    if method == "pointmap":
        return "no point of the model's maps is confident enough; take photos that overlap more"
    return (
        "no point is left whose place the photos tell: the camera only turned, or hardly moved; move it between "
        "photos, a step to the side of about a tenth of the distance"
    )


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


def pick_matcher(matcher: str, model: str | None, encoder: str | None, device: str, dtype: str, run: Run) -> Any:
    """The matcher of that name; "auto" is mast3r where a model is given, else the best one present, and a note says
    which."""
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
    rest = (
        f"reprojection error {scene.reprojection_error_px:.2f} px, parallax {scene.parallax_deg:.2f} deg, "
        f"{len(scene.cloud()[0])} points ({kind}), scale {scene.scale}"
    )
    if len(scene.views) == 2:
        console.note(f"{scene.pairs[0].matches} matches, {scene.pairs[0].inliers} inliers, {rest}")
        return
    for view in scene.views:
        if not view.registered:
            console.note(f"{view.image} could not be placed: {view.reason}")
    for group in scene.components[1:]:
        names = ", ".join(scene.views[index].image for index in group)
        console.note(f"another group of photos, which was left out: {names}")
    console.note(f"{len(scene.registered)} of {len(scene.views)} photos placed, {rest}")
