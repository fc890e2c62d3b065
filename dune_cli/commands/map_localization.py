"""`dune reloc --map`: many queries in a map, by one process or several, with a line each that a stopped run keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console
from dune_cli.commands import options
from dune_cli.commands.matching import NEIGHBOURS, MatchingOptions, RetrievalOptions, workers_option
from dune_cli.commands.options import CameraOptions, OutputOptions, SeededOptions, VideoOptions, option
from dune_cli.errors import DuneError, JobFailed, UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from torch import nn

    from dune_cli.io.cache import WorkFolder
    from dune_cli.matchers.matcher import Matcher
    from dune_cli.sfm.engine import Engine
    from dune_cli.sfm.map_queries import LocalizationJobs, LocatedQuery, QueryPhoto
    from dune_cli.sfm.photo_map import PhotoMap

    Writer = Callable[[dict[str, Any]], None]

AXES = "OpenCV: x right, y down, z forward"


@options.group("Input")
class MapOptions(RetrievalOptions, VideoOptions):
    map_folder: str | None = option(
        "--map DIR|FILE",
        "Map to localize the queries in: a folder with a COLMAP model or a scene.json, or a scene, such as scene.ply "
        "with its JSON beside it.",
    )
    images: str | None = option(
        "--images DIR",
        "Folder with the photos of the map.",
        default_text="in the map's folder, in its folder images, or beside it",
    )
    scale: str | None = option(
        "--scale [metric|arbitrary]",
        "Scale of the map: in metres, or arbitrary.",
        default_text="as its scene.json says, else arbitrary",
    )
    fps: float | None = options.fps("Frames per second to take from a video, the sharpest of each interval.", "2")
    sequence: bool = option(
        "--sequence",
        "The photos of a folder are the frames of one sequence, in the order in which they are named. Each frame helps "
        "to localize the next one, as in a video.",
    )
    workers: int | None = workers_option("localize queries", "none: this process, with all its threads")

    def refuse_without_map(self) -> None:
        """UserError for an option that needs --map."""
        given = {
            "--images": self.images,
            "--scale": self.scale,
            "--neighbours": self.neighbours,
            "--retrieval-model": self.retrieval_model,
            "--work": self.work,
            "--fps": self.fps,
            "--workers": self.workers,
            "--sequence": self.sequence or None,
        }
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} belongs to --map; name the map, or leave {name} out")


@options.group("Matching")
class RelocMatching(MatchingOptions):
    size: int | None = options.size_px()
    min_confidence: float | None = option(
        "--min-confidence X",
        "Minimum confidence of poses. Less confident ones count as failed.",
        options.FRACTION,
        default_text="0.15",
    )

    def least_confidence(self) -> float:
        """--min-confidence or its default."""
        from dune_cli.sfm.relative_pose import MIN_CONFIDENCE

        return MIN_CONFIDENCE if self.min_confidence is None else self.min_confidence


def locate_in_map(
    inputs: Sequence[str],
    map_options: MapOptions,
    matching: RelocMatching,
    cameras: CameraOptions,
    compute: SeededOptions,
    output: OutputOptions,
) -> None:
    """Prints and writes the pose of each query as soon as it is known; JobFailed where there is none at all."""
    from dune_cli.io.inputs import expand, is_video
    from dune_cli.sfm.photo_map import open_map

    paths = expand(inputs, videos=True)
    map_options.check(paths)
    known = cameras.one_by_one(len(paths))
    if cameras.intrinsics is not None and cameras.fov_deg is not None:
        raise UserError("--intrinsics and --fov-deg both say what the camera is; give one of them")
    target = _target(output)
    if target is not None and target.suffix.lower() == ".json" and (len(paths) > 1 or is_video(paths[0])):
        several = f"{len(paths)} queries" if len(paths) > 1 else f"the frames of {paths[0].name}"
        raise UserError(f"{several} do not fit into {target}; name a .jsonl file, which gets a line each")
    matching.check_combination()
    matching.check_present()
    assert map_options.map_folder is not None
    photo_map = open_map(map_options.map_folder, map_options.images, map_options.scale, panoramas=True)

    from dune_cli.io.cache import open_work
    from dune_cli.sfm.engine import open_engine
    from dune_cli.sfm.panorama_maps import in_perspective

    if not photo_map.knows_calibration:
        console.note(
            "the map does not state the uncertainty of its cameras: standard deviations are those of the matches alone "
            "(the scene.json of dune reconstruct states it)"
        )
    cache, note = open_work(map_options.work, photo_map.folder)
    if note:
        console.note(note)
    photo_map = in_perspective(photo_map, cache)
    queries = _query_photos(paths, known, map_options, cache)
    matcher, fallback = matching.load_cascade(compute, many=True)
    jobs = _jobs(photo_map, matcher, cache, map_options, matching, compute)
    if fallback is not None:
        jobs = replace(jobs, load_fallback=fallback)
    settings = {
        "matcher": [matcher.name, matcher.source.name, matcher.source.sha256, matching.matcher],
        "retrieval": map_options.retrieval_model,
        "device": compute.device,
        "dtype": compute.dtype,
    }
    with open_engine("processes", map_options.workers, None) as engine:
        MapRun(photo_map, queries, jobs, output, target).locate(engine, settings)
    if target is not None:
        output.print_lines(target)


class MapRun:
    """The queries of one command, and where their poses go."""

    def __init__(
        self,
        photo_map: PhotoMap,
        queries: Sequence[QueryPhoto],
        jobs: LocalizationJobs,
        output: OutputOptions,
        target: Path | None,
    ) -> None:
        from dune_cli.provenance import sha256_of

        self.map, self.queries, self.jobs, self.output, self.target = photo_map, queries, jobs, output, target
        self.model_files = [(path, sha256_of(path)) for path in photo_map.files]
        self.located, self.inconsistent, self.last = 0, 0, ""

    def locate(self, engine: Engine, settings: dict[str, Any]) -> None:
        """Localizes the queries that no earlier run with these `settings` did. JobFailed where none has a pose."""
        from dune_cli.sfm.engine import InProcess
        from dune_cli.sfm.map_queries import batches, prepare_map

        total = len(self.queries)
        with self._writer(settings) as (write, done):
            if not isinstance(engine, InProcess) and done < total:
                prepare_map(self.jobs, engine, total - done)
            with closing(engine.map(self.jobs, batches(self.queries, done))) as results:
                progress = console.progress(results, "reloc", total - done, "query")
                for query, located in zip(self.queries[done:], progress):
                    self._add(query, located, write)
        if self.inconsistent:
            console.note(
                f"{self.inconsistent} of {self.located} poses are far from the motion of the frames beside them "
                "(sequence.consistent is false); look at them before they are used"
            )
        if not self.located:
            none = f"none of {total} queries was localized; the last: {self.last}"
            raise JobFailed(self.last if total == 1 else none)

    def _add(self, query: QueryPhoto, located: LocatedQuery, write: Writer) -> None:
        from dune_cli.io.json_files import dumps, json_line
        from dune_cli.tasks import reloc

        result, single = located.of(self.map), len(self.queries) == 1
        run = Run(seed=self.jobs.config.seed, seconds={"locate": located.seconds})
        inputs = [*([] if located.sha256 is None else [(query.path, located.sha256)]), *self.model_files]
        units = "metre" if self.map.scale == "metric" else "the map's"
        sequence = None
        if query.video is not None:
            sequence = {"video": query.video, "frame": query.frame, "consistent": located.consistent}
        provenance = run.provenance(list(located.sources), inputs, units=units, axes=AXES)
        document = reloc.map_document(result, provenance, sequence)
        self.located, self.last = self.located + result.success, result.message
        self.inconsistent += located.consistent is False
        write(document)
        if self.output.as_json:
            console.document(dumps(document) if single else json_line(document))
        elif result.success or not single:
            console.result(reloc.map_pose_in_words(result, located.consistent))

    @contextmanager
    def _writer(self, settings: dict[str, Any]) -> Iterator[tuple[Writer, int]]:
        """A function that writes a pose, as the whole .json file or as a line of the .jsonl file, and the number of the
        queries whose lines an earlier run wrote."""
        from dune_cli.io.json_files import write_json
        from dune_cli.io.resumable_lines import ResumableLines, note_continued

        target = self.target
        if target is None:
            yield lambda document: None, 0
        elif target.suffix.lower() == ".json":
            yield lambda document: write_json(target, document), 0
        else:
            lines = ResumableLines(target, {**self._settings(), **settings}, self.output.overwrite)
            done = lines.keep(self._keep)
            note_continued(done, len(self.queries), target, "queries")
            with lines.open() as write:
                yield write, done

    def _keep(self, number: int, tree: dict[str, Any]) -> bool:
        """Whether a line of an earlier run is that of query `number`, which then counts."""
        query = tree.get("query")
        if number >= len(self.queries) or not isinstance(query, dict):
            return False
        if query.get("image") != str(self.queries[number].path):
            return False
        sequence = tree.get("sequence")
        self.located += tree.get("success") is True
        self.last = str(tree.get("message"))
        self.inconsistent += isinstance(sequence, dict) and sequence.get("consistent") is False
        return True

    def _settings(self) -> dict[str, Any]:
        """What the poses depend on."""
        from dataclasses import asdict

        from dune_cli import __version__
        from dune_cli.io.cache import key_of

        def size_of(path: Path) -> int | None:
            return path.stat().st_size if path.is_file() else None

        return {
            "dune": __version__,
            "map": [self.map.folder.resolve(), [sha256 for _, sha256 in self.model_files], len(self.map.images)],
            "scale": self.map.scale,
            "neighbours": self.jobs.neighbours,
            "landmarks": asdict(self.jobs.landmarks),
            "localization": asdict(self.jobs.config),
            "cameras": key_of([(query.intrinsics, query.fov_deg) for query in self.queries]),
            "queries": key_of([(query.path, size_of(query.path), query.video) for query in self.queries]),
        }


def _target(output: OutputOptions) -> Path | None:
    """The output file. A run that was stopped goes on with its own."""
    from dune_cli.io.outputs import check_output
    from dune_cli.io.resumable_lines import is_unfinished

    if output.output is None:
        return None
    goes_on = is_unfinished(Path(output.output).expanduser())
    return check_output(output.output, (".json", ".jsonl"), output.overwrite or goes_on)


def _query_photos(
    paths: Sequence[Path], cameras: Sequence[CameraOptions], map_options: MapOptions, cache: WorkFolder
) -> list[QueryPhoto]:
    """The photos, and instead of each video its keyframes, which the cache keeps."""
    from dune_cli.io.inputs import is_video
    from dune_cli.sfm.keyframes import extract_keyframes
    from dune_cli.sfm.map_queries import QueryPhoto

    queries = []
    frames: Counter[Path] = Counter()  # of each folder, so far
    for path, camera in zip(paths, cameras):
        known = camera.intrinsics, camera.fov_deg
        if is_video(path):
            for frame in extract_keyframes([path], map_options.fps, cache):
                number = int(frame.stem.rpartition("_")[2])
                queries.append(QueryPhoto(frame, *known, path, number))
        elif map_options.sequence:
            queries.append(QueryPhoto(path, *known, path.parent, frames[path.parent]))
            frames[path.parent] += 1
        else:
            queries.append(QueryPhoto(path, *known))
    return queries


def _jobs(
    photo_map: PhotoMap,
    matcher: Matcher,
    cache: WorkFolder,
    map_options: MapOptions,
    matching: RelocMatching,
    compute: SeededOptions,
) -> LocalizationJobs:
    from dune_cli.sfm.landmarks import LandmarkConfig
    from dune_cli.sfm.localization import LocalizationConfig
    from dune_cli.sfm.map_queries import LocalizationJobs
    from dune_cli.sfm.retrieval import DEFAULT_MODEL

    count = map_options.neighbours or NEIGHBOURS
    encoder = partial(
        _load_encoder,
        map_options.retrieval_model or DEFAULT_MODEL,
        (compute.device, compute.dtype),
        (len(photo_map.images), count),
    )
    return LocalizationJobs(
        photo_map,
        matcher.reload if map_options.workers is not None and matcher.reload is not None else lambda: matcher,
        encoder,
        count,
        cache.place,
        LandmarkConfig(seed=compute.seed),
        LocalizationConfig(min_confidence=matching.least_confidence(), seed=compute.seed),
    )


def _load_encoder(name: str, compute: tuple[str, str], counts: tuple[int, int]) -> nn.Module:
    """The encoder of image retrieval. `counts`: the map's photos, and how many of them are chosen."""
    from dune_cli.checkpoints.loader import load_encoder

    images, count = counts
    try:
        return load_encoder(name, *compute)
    except DuneError as error:
        why = " ".join(str(error).split())
        raise type(error)(
            f"the map has {images} photos, and choosing {count} of them takes the encoder {name}: {why}; name "
            f"another with --retrieval-model, or match all of them with --neighbours {images}"
        ) from error
