"""`dune reloc --map`: where photos were taken in a map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import DuneError, JobFailed, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dune_cli.matchers.matcher import Matcher
    from dune_cli.sfm.landmarks import Landmarks
    from dune_cli.sfm.localization import LocalizationConfig, LocalizationResult
    from dune_cli.sfm.multi_reference import MultiReferencePose
    from dune_cli.sfm.relative_pose import CameraImage, PairBackend
    from dune_cli.sfm.retrieval import ImageRetriever


F = TypeVar("F", bound=Callable[..., Any])
TOP_K = 10


def map_options(function: F) -> F:
    """`map_folder`, `images`, `scale`, `top_k`, `retrieval`, `work`."""
    for option in reversed(
        [
            click.option(
                "--map",
                "map_folder",
                metavar="DIR",
                help="Find the queries in this map: the folder of a COLMAP model or of a scene.json.",
            ),
            click.option(
                "--images",
                metavar="DIR",
                help="The map's photos.  [default: in the map's folder, its images folder, or beside it]",
            ),
            click.option(
                "--scale",
                type=click.Choice(["metric", "arbitrary"]),
                help="Whether the map is in metres.  [default: what its scene.json says, else arbitrary]",
            ),
            click.option(
                "--top-k",
                type=click.IntRange(1),
                metavar="N",
                help=f"Match each query with the N map photos most like it.  [default: {TOP_K}]",
            ),
            click.option(
                "--retrieval",
                metavar="NAME|FILE",
                help="Encoder that finds them, where the map has more.  [default: dune-mini]",
            ),
            click.option(
                "--work",
                metavar="DIR",
                help="Keep what is computed for the map there.  [default: dune-work in the map's folder]",
            ),
        ]
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class MapWords:
    """What was said on the command line."""

    queries: tuple[str, ...]
    map_folder: str
    images: str | None
    scale: str | None
    top_k: int | None
    retrieval: str | None
    work: str | None
    model: str | None
    encoder: str | None
    matcher: str
    min_confidence: float | None
    intrinsics: str | None
    fov_deg: float | None
    seed: int
    device: str
    dtype: str
    output: str | None
    overwrite: bool
    as_json: bool


def refuse(given: Mapping[str, Any]) -> None:
    """UserError about the first of the options that were given, none of which means anything in a map."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} is about one reference and does not go with --map; leave it out")


def locate_in_map(words: MapWords) -> None:
    """Prints and writes each query's pose as soon as it is known; JobFailed where there is none at all."""
    from dune_cli.io import outputs
    from dune_cli.io.cache import open_work
    from dune_cli.io.inputs import expand
    from dune_cli.io.intrinsics import one_by_one
    from dune_cli.provenance import Run, sha256_of
    from dune_cli.sfm.landmarks import LandmarkConfig, Landmarks
    from dune_cli.sfm.localization import LocalizationConfig
    from dune_cli.sfm.photo_map import open_map
    from dune_cli.sfm.relative_pose import MIN_CONFIDENCE
    from dune_cli.tasks import reloc

    paths = expand(words.queries)
    cameras = one_by_one(words.intrinsics, len(paths))
    if words.intrinsics is not None and words.fov_deg is not None:
        raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
    target = None
    if words.output is not None:
        target = outputs.check_output(words.output, (".json", ".jsonl"), words.overwrite)
        if len(paths) > 1 and target.suffix.lower() == ".json":
            raise UserError(
                f"{len(paths)} queries do not fit into {target}; name a .jsonl file, which gets a line each"
            )
    checks.model_options(words.model, words.matcher, words.encoder)
    checks.weights(words.model, words.encoder)
    checks.matchers([words.matcher])
    photo_map = open_map(words.map_folder, words.images, words.scale)
    if not photo_map.knows_calibration:
        console.note(
            "the map does not say how sure its cameras are: standard deviations are those of the matches alone (the "
            "scene.json of dune reconstruct says it)"
        )
    work, note = open_work(words.work, photo_map.folder)
    if note:
        console.note(note)
    matcher = _matcher(words)
    points = Landmarks(photo_map, matcher, LandmarkConfig(seed=words.seed), work)
    chooser = _chooser(words, points)
    confidence = MIN_CONFIDENCE if words.min_confidence is None else words.min_confidence
    config = LocalizationConfig(min_confidence=confidence, seed=words.seed)
    model_files = [(path, sha256_of(path)) for path in photo_map.files]
    found, last = 0, ""
    with _lines(target) as write:
        for path, intrinsics in zip(console.progress(paths, "reloc", len(paths), "query"), cameras):
            run = Run(seed=words.seed)
            with run.stage("locate"):
                located, sha256 = _locate(path, intrinsics, words.fov_deg, points, chooser, config)
            sources = [matcher.source, *([] if chooser.encoder is None else [chooser.encoder.source])]
            tree = reloc.map_document(
                located,
                run.provenance(
                    sources,
                    [*([] if sha256 is None else [(path, sha256)]), *model_files],
                    units="metre" if photo_map.scale == "metric" else "the map's",
                    axes="OpenCV: x right, y down, z forward",
                ),
            )
            found, last = found + located.success, located.message
            write(tree)
            if words.as_json:
                _print_json(tree, len(paths))
            elif located.success or len(paths) > 1:
                console.result(reloc.map_pose_in_words(located))
    if target is not None and not words.as_json:
        console.result(target)
    if not found:
        raise JobFailed(last if len(paths) == 1 else f"none of {len(paths)} queries was found; the last: {last}")


def _matcher(words: MapWords) -> Matcher:
    from dune_cli.matchers import registry

    if words.model is None:
        name = words.matcher
        if name == "auto":
            name, text = registry.choose_auto()
            console.note(text)
        return registry.load_matcher(name, words.device, words.dtype)
    return registry.load_matcher("mast3r", words.device, words.dtype, words.model, words.encoder)


def _chooser(words: MapWords, points: Landmarks) -> ImageRetriever:
    from dune_cli.sfm.retrieval import ImageRetriever

    count, images = words.top_k or TOP_K, len(points.map.images)

    def load() -> nn.Module:
        from dune_cli.checkpoints.loader import load_encoder
        from dune_cli.sfm.retrieval import DEFAULT_MODEL

        name = words.retrieval or DEFAULT_MODEL
        try:
            return load_encoder(name, words.device, words.dtype)
        except DuneError as error:
            why = " ".join(str(error).split())
            raise type(error)(
                f"the map has {images} photos, and choosing {count} of them takes the encoder {name}: {why}; name "
                f"another with --retrieval, or match all of them with --top-k {images}"
            ) from error

    return ImageRetriever(points.map, count, load, points.work)


def _locate(
    path: Path,
    intrinsics: str | None,
    fov_deg: float | None,
    points: Landmarks,
    chooser: ImageRetriever,
    config: LocalizationConfig,
) -> tuple[LocalizationResult, str | None]:
    """The query's pose, and its hash; what is wrong with the query itself is a pose that is not known."""
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.sfm.cameras import Camera
    from dune_cli.sfm.localization import Query, failed_localization, localize

    try:
        photo = read_photo(path)
        K, source = resolve_intrinsics([photo], intrinsics, fov_deg)[0]
    except UserError as error:
        return failed_localization(str(path), points.map, str(error)), None
    query = Query(photo, Camera.pinhole(K, photo.width, photo.height), source)
    return localize(query, points, chooser.for_query(photo.rgb), config, chooser.for_query), photo.sha256


@contextmanager
def _lines(target: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a pose: to the .jsonl file, where each line is there as soon as it is written and stays
    whatever comes after it, or as the whole .json file."""
    from dune_cli.io.json_files import json_line, write_json

    if target is None:
        yield lambda tree: None
    elif target.suffix.lower() == ".json":
        yield lambda tree: write_json(target, tree)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="ascii", newline="\n") as file:
            yield lambda tree: print(json_line(tree), file=file, flush=True)


def _print_json(tree: dict[str, Any], queries: int) -> None:
    from dune_cli.io.json_files import dumps, json_line

    console.document(dumps(tree) if queries == 1 else json_line(tree))


# `dune reloc` without a map: a query photo and its references.


@dataclass(frozen=True)
class PairWords:
    """What was said on the command line."""

    query: str
    references: tuple[str, ...]
    model: str | None
    encoder: str | None
    matcher: str
    solver: str | None
    ref_depths: tuple[str, ...]
    depth_scale: float | None
    baseline: float | None
    min_confidence: float | None
    intrinsics: str | None
    fov_deg: float | None
    size: int | None
    seed: int
    device: str
    dtype: str
    output: str | None
    overwrite: bool
    as_json: bool


def locate_by_references(words: PairWords) -> None:
    """Prints and writes the poses; JobFailed where there is none."""
    from dune_cli.io import outputs
    from dune_cli.io.inputs import expand
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.provenance import Run

    paths = expand([words.query]), expand(words.references)
    if len(paths[0]) != 1:
        raise UserError(f"one query photo is needed, {words.query} names {len(paths[0])}; name a single file")
    metric_points = words.model is not None or bool(words.ref_depths)
    _check_lengths(words, len(paths[1]))
    target = outputs.check_output(words.output, (".json",), words.overwrite) if words.output is not None else None

    checks.weights(words.model, words.encoder)
    checks.matchers([words.matcher] if words.model is None else [])

    # MERGED
    from dune_cli.sfm import multi_reference, relative_pose
    from dune_cli.tasks import reloc

    run = Run(seed=words.seed)
    with run.stage("read"):
        shots = _shots([*paths[0], *paths[1]], words.intrinsics, words.fov_deg, words.ref_depths, words.depth_scale)
    with run.stage("load"):
        backend = load_sight(words.model, words.encoder, words.matcher, words.size, words.device, words.dtype)
    config = relative_pose.SolverConfig(
        words.solver or ("pnp" if metric_points else "essential"),
        words.baseline,
        relative_pose.MIN_CONFIDENCE if words.min_confidence is None else words.min_confidence,
        words.seed,
    )
    results, commons, references = [], [], []
    with run.stage("look"):
        seen_query = backend.extract(shots[0])
    for shot in console.progress(shots[1:], "reloc", unit="reference"):
        with run.stage("look"):
            references.append(backend.extract(shot))
        with run.stage("match"):
            try:
                commons.append(backend.match(references[-1], seen_query))
            except JobFailed as error:
                commons.append(None)
                results.append(relative_pose.failed_relocalization(shot, shots[0], config, str(error), metric_points))
                continue
        with run.stage("pose"):
            results.append(relative_pose.relocalize(commons[-1], config))
    joint = None
    if len(references) > 1:
        with run.stage("joint"):
            joint = multi_reference.localize_from_references(backend, references, seen_query, commons, results, config)
    best = reloc.best_of(results) if joint is None else joint.pose
    if "default" in (best.query.focal_source, best.reference.focal_source):
        console.note(
            "the focal length is a guess (55 degrees across the long side), and so is the pose; give --intrinsics or "
            "--fov-deg"
        )
    provenance = run.provenance(
        [backend.source],
        [(shot.photo.path, shot.photo.sha256) for shot in shots] + _hashed(words.ref_depths),
        units="metre" if best.scale == "metric" else "baseline",
        axes="OpenCV: x right, y down, z forward",
    )
    tree = reloc.document(results, provenance, joint)
    if target is not None:
        write_json(target, tree)
    if words.as_json:
        console.document(dumps(tree))
    else:
        _print(results, joint, target)
    if not best.success:
        raise JobFailed(best.message if len(results) == 1 else f"none of {len(results)} references: {best.message}")


def _check_lengths(words: PairWords, references: int) -> None:
    """Options that contradict each other: UserError."""
    checks.model_options(words.model, words.matcher, words.encoder, words.size)
    ways = {"--model": words.model, "--ref-depth": words.ref_depths or None, "--baseline": words.baseline}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say how long the translation is; give one of them")
    if words.ref_depths and len(words.ref_depths) != references:
        raise UserError(
            f"{len(words.ref_depths)} depth maps for {references} references; give --ref-depth once for each"
        )
    if words.depth_scale is not None and not words.ref_depths:
        raise UserError("--depth-scale belongs to --ref-depth; give both or none")
    if words.baseline is not None and references > 1:
        raise UserError(f"--baseline is the distance to one reference, {references} were named; name one")
    if words.solver == "pnp" and words.model is None and not words.ref_depths:
        raise UserError("--solver pnp needs points in metres: give --ref-depth of the reference, or a two-view --model")


def _shots(
    paths: list[Any], intrinsics: str | None, fov_deg: float | None, ref_depths: tuple[str, ...], scale: float | None
) -> list[CameraImage]:
    """The query and the references with their cameras and depth maps."""
    from dune_cli.io.depth_files import read_depth
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.sfm.relative_pose import CameraImage

    photos = [read_photo(path) for path in paths]
    cameras = resolve_intrinsics(photos, intrinsics, fov_deg)
    depths = [None, *(read_depth(path, scale) for path in ref_depths)] + [None] * (len(photos) - 1 - len(ref_depths))
    for photo, depth, name in zip(photos[1:], depths[1:], ref_depths):
        if depth is not None and depth.shape != (photo.height, photo.width):
            raise UserError(
                f"the depth map {name} has {depth.shape[1]} x {depth.shape[0]} px, but {photo.path.name} has "
                f"{photo.width} x {photo.height}; resize one of them so that pixels correspond"
            )
    return [CameraImage(photo, K, source, depth) for photo, (K, source), depth in zip(photos, cameras, depths)]


def _hashed(names: tuple[str, ...]) -> list[tuple[Any, str]]:
    from pathlib import Path

    from dune_cli.provenance import sha256_of

    return [(path, sha256_of(path)) for path in (Path(name).expanduser() for name in names)]


def _print(results: list[Any], joint: MultiReferencePose | None, target: Path | None) -> None:
    from dune_cli.tasks import reloc

    best = reloc.best_of(results)
    if best.success or joint is not None or len(results) > 1:
        console.document("\n".join(reloc.in_words(result) for result in results))
    if joint is not None:
        console.document(reloc.joint_in_words(joint))
    if best.success and len(results) > 1:
        console.result(f"best: {best.reference.name}, confidence {best.confidence:.2f}")
    if target is not None:
        console.result(target)


# `dune reloc`: where a photo was taken, relative to another one or in a map.


@click.command(cls=GroupedCommand, short_help="Where a photo was taken, relative to a reference photo or in a map.")
@click.argument("query")
@click.argument("references", nargs=-1, metavar="REFERENCE...")
@map_options
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
    type=options.FiniteRange(0, min_open=True),
    metavar="N",
    help="Metres = PNG value / N.  [default: what the depth's own JSON says, else 1000]",
)
@click.option(
    "--baseline",
    type=options.FiniteRange(0, min_open=True),
    metavar="METRES",
    help="True distance between the two cameras.",
)
@click.option(
    "--min-confidence",
    type=options.FiniteRange(0, 1),
    metavar="C",
    help="Give out no pose below it.  [default: 0.15]",
)
@options.cameras
@options.size
@options.seed
@options.compute
@options.output(False, "Also write the JSON to this .json file; with --map also .jsonl, a line a query.")
@options.as_json
@options.common
def command(
    query: str,
    references: tuple[str, ...],
    map_folder: str | None,
    images: str | None,
    scale: str | None,
    top_k: int | None,
    retrieval: str | None,
    work: str | None,
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
    """Rotation and translation of the QUERY photo's camera relative to that of each REFERENCE photo, or in a map.

    The translation is the query camera's centre in the reference camera's frame (x right, y down, z forward): in metres
    with a two-view --model, --ref-depth or --baseline, else a direction of length 1. Several references give one pose
    together, in the frame of the best one, and each its own as a candidate in the JSON. Photos of different places, one
    photo twice, and a camera that only turned (unless lengths are known: then the distance is about 0) give no pose:
    exit code 1 and the reason.

    With --map every photo that is named is a query, and its pose is in the world of that map, with its covariance;
    exit code 1 where none of them was found. The covariance contains the uncertainty of the map's own cameras where the
    map is a scene.json of dune reconstruct, and of a COLMAP model only with that file in its folder; the JSON says
    whether it does. What is computed for the map is kept in its folder dune-work.

    \b
    Example: dune reloc query.jpg reference.jpg --fov-deg 65
             dune reloc query.jpg reference.jpg --ref-depth reference_depth.png -o pose.json
             dune reloc query.jpg one.jpg two.jpg --model dunemast3r-vitb --json
             dune reloc --map colmap/ --images photos/ queries/ -o poses.jsonl
    """
    if map_folder is not None:
        # MERGED

        given = {
            "--solver": solver,
            "--ref-depth": ref_depths or None,
            "--depth-scale": depth_scale,
            "--baseline": baseline,
            "--size": size,
        }
        refuse(given)
        words = MapWords(
            *((query, *references), map_folder, images, scale, top_k, retrieval, work, model, encoder, matcher),
            *(min_confidence, intrinsics, fov_deg, seed, device, dtype, output, overwrite, as_json),
        )
        locate_in_map(words)
        return
    # MERGED

    own = {"--images": images, "--scale": scale, "--top-k": top_k, "--retrieval": retrieval, "--work": work}
    for name, value in own.items():
        if value is not None:
            raise UserError(f"{name} belongs to --map; name the map, or leave {name} out")
    if not references:
        raise click.UsageError("Missing argument 'REFERENCE...' (or --map DIR)")
    locate_by_references(
        PairWords(
            *(query, references, model, encoder, matcher, solver, ref_depths, depth_scale, baseline, min_confidence),
            *(intrinsics, fov_deg, size, seed, device, dtype, output, overwrite, as_json),
        )
    )


def load_sight(
    model: str | None, encoder: str | None, matcher: str, size: int | None, device: str, dtype: str
) -> PairBackend:
    """The two-view model, or the matcher, that sees what photos have in common."""
    from dune_cli.sfm.relative_pose import MatcherBackend, TwoViewBackend

    if model is not None:
        from dune_cli.checkpoints.loader import load_two_view

        network = load_two_view(model, encoder, device, dtype)
        console.note(f"model {network.source.name}, licence {network.source.licence}")
        return TwoViewBackend(network, size)
    from dune_cli.matchers import registry

    if matcher == "auto":
        matcher, text = registry.choose_auto()
        console.note(text)
    return MatcherBackend(registry.load_matcher(matcher, device, dtype))
