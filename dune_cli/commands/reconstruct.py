"""The options of `dune reconstruct` that are for three photos or more, as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import JobFailed, UserError

if TYPE_CHECKING:
    from dune_cli.commands.reconstruct_outputs import Targets
    from dune_cli.io.cache import WorkFolder
    from dune_cli.provenance import Run
    from dune_cli.sfm.features import DescriptorExtractor
    from dune_cli.sfm.scene import Scene

    Done = tuple[Scene, list[tuple[Path, str]], dict[str, Any]]


@dataclass(frozen=True)
class Many:
    """What the user asked for, by the options' names. `retrieval_model` None: the default one, if it is here."""

    fps: float | None = None
    pairs: str = "auto"
    neighbours: int = 10
    retrieval_model: str | None = None
    mapper: str = "incremental"
    poses: str | None = None
    pose_use: str = "fixed"
    dense: bool = True
    quality: str = "medium"
    mesh: str | None = None
    work: str | None = None
    preflight: bool = False

    def say_unused(self) -> None:
        """A note about options that two photos have no use for."""
        ignored = [f.name for f in fields(self) if f.name not in ("fps", "mesh") and getattr(self, f.name) != f.default]
        if ignored:
            words = ", ".join("--no-dense" if name == "dense" else f"--{name.replace('_', '-')}" for name in ignored)
            console.note(f"two photos have no use for {words}")


OPTIONS = [
    options.fps_as("Of a video, the sharpest frame of every 1/N seconds.  [default: 2]"),
    click.option(
        "--pairs",
        default="auto",
        show_default=True,
        metavar="WAY|FILE",
        help="Which photos are compared: all, sequential (with those that follow), retrieval (with those that look "
        "alike), a file with two names a line; auto: all of up to 20 photos, else retrieval.",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        metavar="K",
        help="Photos that each one is compared with (retrieval, sequential).",
    ),
    click.option(
        "--retrieval-model",
        metavar="NAME|FILE",
        help="The encoder that tells which photos look alike.  [default: dune-mini if present, else keypoints do it]",
    ),
    click.option(
        "--mapper",
        type=click.Choice(["incremental", "global"]),
        default="incremental",
        show_default=True,
        help="pycolmap's structure from motion.",
    ),
    click.option(
        "--poses", metavar="FILE|DIR", help="Known cameras: JSON, COLMAP model, TUM or KITTI trajectory (matches)."
    ),
    click.option(
        "--pose-use",
        type=click.Choice(["fixed", "prior"]),
        default="fixed",
        show_default=True,
        help="Keep known poses as they are, or take their positions as a start that may move.",
    ),
    click.option("--dense/--no-dense", default=True, show_default=True, help="Depth for every view and a dense cloud."),
    click.option(
        "--quality",
        type=click.Choice(["low", "medium", "high"]),
        default="medium",
        show_default=True,
        help="Of the dense points: size of the depth maps and time.",
    ),
    click.option(
        "--mesh",
        type=click.Choice(["tsdf", "poisson"]),
        help="Make one surface of the views, in a .ply, too.  [for .obj and .glb: tsdf]",
    ),
    click.option(
        "--work", metavar="DIR", help="Folder that keeps what was computed.  [default: the output's name with .work]"
    ),
    click.option("--preflight", is_flag=True, help="Time a few photos, print pairs, memory and minutes, and stop."),
]


def many_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the function gets them as one `many`."""
    names = [field.name for field in fields(Many)]

    @functools.wraps(function)
    def gather(*arguments: Any, **given: Any) -> Any:
        own = {name: given.pop(name) for name in names}
        return function(*arguments, many=Many(**own), **given)

    for option in reversed(OPTIONS):
        gather = option(gather)
    return gather


# `dune reconstruct` of three photos or more: the work folder, the encoder, the preflight, and what to run on them.


@dataclass(frozen=True)
class Compute:
    """Which method, with what, on what."""

    method: str
    model: str | None
    encoder: str | None
    matcher: str
    device: str
    dtype: str
    size_px: int | None


@dataclass(frozen=True)
class Job:
    """What both methods get. ordered: the photos follow one another. cameras: --intrinsics, --fov-deg. shared: the
    settings that both configurations have."""

    images: list[Path]
    many: Many
    compute: Compute
    cameras: tuple[str | None, float | None]
    shared: dict[str, Any]
    work: WorkFolder
    run: Run
    ordered: bool
    surface: str | None

    def settings(self) -> dict[str, Any]:
        """Of either configuration."""
        pairs = {"pairs": self.many.pairs, "neighbours": self.many.neighbours, "ordered": self.ordered}
        return pairs | {"fixed_poses": self.many.pose_use == "fixed"} | self.shared

    def intrinsics(self, facts: Any) -> Any:
        """K and where it is from, of each photo."""
        from dune_cli.io.intrinsics import resolve_intrinsics

        return resolve_intrinsics(facts, *self.cameras)


def run_many(
    paths: Sequence[Path],
    targets: Targets,
    many: Many,
    compute: Compute,
    cameras: tuple[str | None, float | None],
    shared: dict[str, Any],
    run: Run,
) -> Done | None:
    """The scene, each photo with its hash, and what was new to the work folder; None after --preflight, which prints
    what the work would take."""
    from dune_cli.io import formats
    from dune_cli.io.cache import WorkFolder
    from dune_cli.io.inputs import is_video
    from dune_cli.sfm.keyframes import extract_keyframes

    content = formats.constant(targets.scene, "CONTENT", ())
    if many.mesh is not None and "surface" not in content:
        raise UserError(
            f"--mesh makes a surface, which {targets.scene.name} does not hold; write -o scene.glb, .obj or .ply"
        )
    work = WorkFolder(many.work or targets.scene.with_suffix(".work"))
    ordered = all(map(is_video, paths))
    with run.stage("read"):
        images = extract_keyframes(paths, many.fps, work)
    if len(images) < 2:
        raise UserError(f"two photos are needed, got {len(images)} of {paths[0].name}; raise --fps")
    if images != list(paths):
        targets.check_photos(images)
    surface = many.mesh or ("tsdf" if content[0] == "surface" else None)
    job = Job(images, many, compute, cameras, shared, work, run, ordered, surface)
    return _by_pointmaps(job) if compute.method == "pointmap" else _by_matches(job)


def _by_matches(job: Job) -> Done | None:
    # MERGED
    from dune_cli.io.json_files import dumps
    from dune_cli.sfm.pairs import check_pairs
    from dune_cli.tasks.reconstruct import many as pointmaps
    from dune_cli.tasks.reconstruct.preflight import preflight

    images, many, compute, work, run = job.images, job.many, job.compute, job.work, job.run
    poses = _known_poses(many, images, job.shared)
    config = pointmaps.ManyConfig(mapper=many.mapper, **job.settings())
    check_pairs(many.pairs, images)
    matcher = pick_matcher(compute.matcher, compute.model, compute.encoder, compute.device, compute.dtype, run)
    describer = _describer(many.retrieval_model, compute) if pointmaps.wants_descriptors(len(images), config) else None
    if many.preflight:
        console.document(dumps(asdict(preflight(images, matcher, config, work, describer))))
        return None

    scene = pointmaps.reconstruct(images, job.intrinsics, matcher, config, work, run, describer, poses)
    if many.dense and not scene.is_dense:
        from dune_cli.mvs.densify import densify
        from dune_cli.mvs.quality import DenseConfig

        settings = DenseConfig(many.quality, device=compute.device)
        scene = densify(scene, images, settings, job.surface, run, config.min_confidence)
    console.note(
        f"{work.counts['features']} photos and {work.counts['matches']} pairs were new; {work.folder} keeps them"
    )
    return scene, _hashed(images), _work_facts(work)


def _known_poses(many: Many, images: list[Path], shared: dict[str, Any]) -> dict[Path, Any] | None:
    if many.poses is None:
        return None
    if shared["baseline"] is not None:
        raise UserError("--poses and --baseline both say how long things are; give one of them")
    from dune_cli.io.pose_files import read_poses

    found = read_poses(many.poses, [str(image) for image in images])
    missing = [image.name for image in images if str(image) not in found]
    if len(found) < 2:
        raise UserError(f"{many.poses} has a pose for only one of the {len(images)} photos; two or more are needed")
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        console.note(f"{many.poses} has no pose for {len(missing)} of {len(images)} photos, which are placed: {names}")
    return {Path(name): pose for name, pose in found.items()}


def _describer(name: str | None, compute: Compute) -> DescriptorExtractor | None:
    """The encoder that compares photos; None where the user named none and the default one is not here."""
    from dune_cli.checkpoints import registry, weights_folder
    from dune_cli.checkpoints.loader import load_encoder
    from dune_cli.sfm.features import encoder_descriptor_extractor
    from dune_cli.sfm.retrieval import DEFAULT_MODEL

    if name is None:
        entry = registry.find(DEFAULT_MODEL)
        if entry is None or weights_folder.find_present(entry) is None:
            console.note(
                f"the encoder {DEFAULT_MODEL} is not here: photos that look alike are found by their keypoints"
            )
            return None
    return encoder_descriptor_extractor(load_encoder(name or DEFAULT_MODEL, compute.device))


def _work_facts(work: WorkFolder) -> dict[str, Any]:
    """How many things of each kind this run computed; the others came out of the folder."""
    computed = {kind: count for kind, count in sorted(work.counts.items()) if not kind.endswith(", found")}
    return {"work": {"folder": work.folder, "computed": computed}}


def _hashed(images: list[Path]) -> list[tuple[Path, str]]:
    from dune_cli.provenance import sha256_of

    return [(path, sha256_of(path)) for path in images]


def _by_pointmaps(job: Job) -> Done:
    from dune_cli.checkpoints import loader
    from dune_cli.mvs.densify import fuse_scene
    from dune_cli.sfm.pairs import check_pairs
    from dune_cli.tasks.reconstruct import pointmaps

    images, many, compute = job.images, job.many, job.compute
    if many.preflight:
        raise UserError("--preflight measures --method matches; leave --preflight or --model out")
    assert compute.model is not None
    poses = _known_poses(many, images, job.shared)
    config = pointmaps.ManyPointMapsConfig(size_px=compute.size_px, **job.settings())
    check_pairs(many.pairs, images)
    with job.run.stage("load"):
        network = loader.load_two_view(compute.model, compute.encoder, compute.device, compute.dtype)
    console.note(f"model {network.source.name}, licence {network.source.licence}")
    scene = pointmaps.reconstruct(images, job.intrinsics, network, config, job.work, job.run, poses)
    if many.dense:
        scene = fuse_scene(scene, job.surface, job.run)
    return scene, _hashed(images), _work_facts(job.work)


# `dune reconstruct`: photos or a video to a 3-D scene.


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

    # MERGED
    from dune_cli.commands.reconstruct_outputs import check_targets
    from dune_cli.commands.videos import check_fps
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.outputs import unique_stems
    from dune_cli.io.photos import read_photo
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
        compute = Compute(method, model, encoder, matcher, device, dtype, size)
        cameras = (intrinsics, fov_deg)
        done = run_many(paths, targets, many, compute, cameras, shared, run)
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
            scene = _by_matches_reconstruct(images, Ks, run, loaded, {"dense_side_px": size, **shared})
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
    from dune_cli.matchers import registry as loader

    if matcher == "auto" and model is not None:
        matcher = "mast3r"
    elif matcher == "auto":
        matcher, text = loader.choose_auto()
        console.note(text)
    with run.stage("load"):
        return loader.load_matcher(matcher, device, dtype, model, encoder)


def _by_matches_reconstruct(images: list, cameras: list, run: Run, matcher: Any, settings: dict[str, Any]) -> Scene:
    from dune_cli.tasks.reconstruct import two_view

    return two_view.reconstruct(images, cameras, matcher, two_view.MatchesConfig(**settings), run)


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
    from dune_cli.checkpoints import loader
    from dune_cli.tasks.reconstruct import pointmaps

    assert model is not None
    with run.stage("load"):
        network = loader.load_two_view(model, encoder, device, dtype)
    console.note(f"model {network.source.name}, licence {network.source.licence}")
    return pointmaps.reconstruct_pair(images, cameras, network, pointmaps.PointMapConfig(**settings), run)


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
