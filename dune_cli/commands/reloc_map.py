"""`dune reloc --map`: where photos were taken in a map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dune_cli import console
from dune_cli.commands import checks
from dune_cli.errors import DuneError, JobFailed, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dune_cli.matchers.base import Matcher
    from dune_cli.tasks.reloc.choose import Chooser
    from dune_cli.tasks.reloc.guesses import LocateConfig
    from dune_cli.tasks.reloc.in_map import Located
    from dune_cli.tasks.reloc.map_points import MapPoints

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
    from dune_cli.io import atomic
    from dune_cli.io.inputs import expand
    from dune_cli.io.intrinsics import one_by_one
    from dune_cli.io.work_folder import open_work
    from dune_cli.provenance import Run, sha256_of
    from dune_cli.tasks.reloc import map_json
    from dune_cli.tasks.reloc.guesses import LocateConfig
    from dune_cli.tasks.reloc.map_files import open_map
    from dune_cli.tasks.reloc.map_points import MapPoints, PointsConfig
    from dune_cli.tasks.reloc.solve import MIN_CONFIDENCE

    paths = expand(words.queries)
    cameras = one_by_one(words.intrinsics, len(paths))
    if words.intrinsics is not None and words.fov_deg is not None:
        raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
    target = None
    if words.output is not None:
        target = atomic.check_output(words.output, (".json", ".jsonl"), words.overwrite)
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
    points = MapPoints(photo_map, matcher, PointsConfig(seed=words.seed), work)
    chooser = _chooser(words, points)
    confidence = MIN_CONFIDENCE if words.min_confidence is None else words.min_confidence
    config = LocateConfig(min_confidence=confidence, seed=words.seed)
    model_files = [(path, sha256_of(path)) for path in photo_map.files]
    found, last = 0, ""
    with _lines(target) as write:
        for path, intrinsics in zip(console.progress(paths, "reloc", len(paths), "query"), cameras):
            run = Run(seed=words.seed)
            with run.stage("locate"):
                located, sha256 = _locate(path, intrinsics, words.fov_deg, points, chooser, config)
            sources = [matcher.source, *([] if chooser.encoder is None else [chooser.encoder.source])]
            tree = map_json.document(
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
                console.result(map_json.in_words(located))
    if target is not None and not words.as_json:
        console.result(target)
    if not found:
        raise JobFailed(last if len(paths) == 1 else f"none of {len(paths)} queries was found; the last: {last}")


def _matcher(words: MapWords) -> Matcher:
    from dune_cli.matchers import load

    if words.model is None:
        name = words.matcher
        if name == "auto":
            name, text = load.choose_auto()
            console.note(text)
        return load.load_matcher(name, words.device, words.dtype)
    return load.load_matcher("mast3r", words.device, words.dtype, words.model, words.encoder)


def _chooser(words: MapWords, points: MapPoints) -> Chooser:
    from dune_cli.tasks.reloc.choose import Chooser

    count, images = words.top_k or TOP_K, len(points.map.images)

    def load() -> nn.Module:
        from dune_cli.checkpoints.load import load_encoder
        from dune_cli.matchers.retrieval import DEFAULT_MODEL

        name = words.retrieval or DEFAULT_MODEL
        try:
            return load_encoder(name, words.device, words.dtype)
        except DuneError as error:
            why = " ".join(str(error).split())
            raise type(error)(
                f"the map has {images} photos, and choosing {count} of them takes the encoder {name}: {why}; name "
                f"another with --retrieval, or match all of them with --top-k {images}"
            ) from error

    return Chooser(points.map, count, load, points.work)


def _locate(
    path: Path,
    intrinsics: str | None,
    fov_deg: float | None,
    points: MapPoints,
    chooser: Chooser,
    config: LocateConfig,
) -> tuple[Located, str | None]:
    """The query's pose, and its hash; what is wrong with the query itself is a pose that is not known."""
    from dune_cli.io.intrinsics import resolve_intrinsics
    from dune_cli.io.photos import read_photo
    from dune_cli.tasks.reloc.in_map import Query, locate, unread
    from dune_cli.tasks.reloc.lens import Lens

    try:
        photo = read_photo(path)
        K, source = resolve_intrinsics([photo], intrinsics, fov_deg)[0]
    except UserError as error:
        return unread(str(path), points.map, str(error)), None
    query = Query(photo, Lens.pinhole(K, photo.width, photo.height), source)
    return locate(query, points, chooser.for_query(photo.rgb), config, chooser.for_query), photo.sha256


@contextmanager
def _lines(target: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a pose: to the .jsonl file, where each line is there as soon as it is written and stays
    whatever comes after it, or as the whole .json file."""
    from dune_cli.io.jsons import json_line, write_json

    if target is None:
        yield lambda tree: None
    elif target.suffix.lower() == ".json":
        yield lambda tree: write_json(target, tree)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="ascii", newline="\n") as file:
            yield lambda tree: print(json_line(tree), file=file, flush=True)


def _print_json(tree: dict[str, Any], queries: int) -> None:
    from dune_cli.io.jsons import dumps, json_line

    console.document(dumps(tree) if queries == 1 else json_line(tree))
