"""The tasks of `dune predict`: each does what its own verb does by default, to a file of a fixed name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dune_cli import console
from dune_cli.commands import checks, options
from dune_cli.commands.options import GroupedCommand
from dune_cli.errors import UserError
from dune_cli.provenance import Run, Source

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.models.shared_backbone import SharedBackbone, SharedBackboneSlot
    from dune_cli.provenance import Run


@dataclass(frozen=True)
class Wishes:
    """What the user said, for all tasks: `models` by task, `encoder` of a depth head and of features, `body_models` the
    folder with SMPL-X, `min_score` of people, `size` the network input's long side in pixels."""

    models: dict[str, str]
    encoder: str | None
    body_models: str | None
    min_score: float
    size: int | None
    fov_deg: float | None
    device: str
    dtype: str


class DepthTask:
    """`dune depth`."""

    name, verb, file = "depth", "depth", "depth.png"

    def __init__(self, wishes: Wishes) -> None:
        from dune_cli.checkpoints.defaults import default_model
        from dune_cli.checkpoints.loader import load_depth

        self.wishes = wishes
        model = wishes.models.get(self.name) or default_model("depth")
        self.network = load_depth(model, wishes.encoder, wishes.device, wishes.dtype)
        self.sources: list[Source] = self.network.sources  # before encoders are shared, whose files may differ

    def slot(self) -> SharedBackboneSlot | None:
        """Where its ViT is; None for a model with another kind of encoder."""
        from dune_cli.models.depth import TwoViewDepth
        from dune_cli.models.mast3r import DunePatches
        from dune_cli.models.shared_backbone import SharedBackboneSlot

        if not isinstance(self.network, TwoViewDepth):
            return SharedBackboneSlot(self.name, self.network, "encoder", tuple(self.network.blocks))
        encoder = self.network.model.encoder
        return SharedBackboneSlot(self.name, encoder, "vit") if isinstance(encoder, DunePatches) else None

    def largest_px(self) -> int:
        """The long side of the network's input for a photo that is not smaller."""
        from dune_cli.models.depth import TwoViewDepth
        from dune_cli.tasks import depth

        return (
            self.network.model.size if isinstance(self.network, TwoViewDepth) else depth.default_size_px(self.network)
        )

    def takes_any_sides(self) -> bool:
        """Whether it sees photos whole, padded to patches, rather than cropped to patches."""
        from dune_cli.models.depth import TwoViewDepth

        return not isinstance(self.network, TwoViewDepth)

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty."""
        from dune_cli.io.intrinsics import resolve_intrinsics
        from dune_cli.tasks import depth

        known = resolve_intrinsics([photo], camera, self.wishes.fov_deg)[0]
        result = depth.predict(self.network, photo, known, size, run=run)
        return depth.document(result, path, depth.write(result, path), {})


class HumanTask:
    """`dune human`."""

    name, verb, file = "human", "human", "people.obj"

    def __init__(self, wishes: Wishes) -> None:
        from dune_cli.checkpoints.defaults import default_model
        from dune_cli.tasks import human

        self.wishes = wishes
        model = wishes.models.get(self.name) or default_model("human")
        self.model = human.load_human(model, wishes.body_models, wishes.device, wishes.dtype)
        self.sources: list[Source] = [self.model.source, self.model.body.source]

    def slot(self) -> SharedBackboneSlot | None:
        """Where its ViT is."""
        from dune_cli.models.shared_backbone import SharedBackboneSlot

        network = self.model.network
        return SharedBackboneSlot(self.name, network.encoder if network.body == "anny" else network, "backbone")

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty. `size` is the head's own."""
        from dune_cli.tasks import human

        known = human.cameras([photo], camera, self.wishes.fov_deg)[0]
        with run.stage("network"):
            found = human.predict(self.model, photo, *known, self.wishes.min_score)
        human.write_meshes(path, human.meshes(self.model, found.people), found)
        return human.document(self.model, found, path, {})


class FeaturesTask:
    """`dune encode`."""

    name, verb, file = "features", "encode", "features.npz"

    def __init__(self, wishes: Wishes, model: str) -> None:
        from dune_cli.checkpoints.loader import load_encoder

        self.encoder = load_encoder(model, wishes.device, wishes.dtype)
        self.sources: list[Source] = [self.encoder.source]

    def slot(self) -> SharedBackboneSlot | None:
        """Where its ViT is; None for another kind of encoder."""
        from dune_cli.models.distilled_encoder import DistilledEncoder
        from dune_cli.models.shared_backbone import SharedBackboneSlot
        from dune_cli.models.vit import VisionTransformer

        if isinstance(self.encoder, DistilledEncoder):
            return SharedBackboneSlot(self.name, self.encoder, "vit")
        return SharedBackboneSlot(self.name, self, "encoder") if isinstance(self.encoder, VisionTransformer) else None

    def predict(self, photo: Photo, camera: str | None, size: int | None, path: Path, run: Run) -> dict[str, Any]:
        """Writes `path`; the JSON's object, its provenance empty. No `camera` is needed."""
        from dune_cli.tasks import encode

        (features,) = encode.encode(self.encoder, [photo], size, run=run)
        encode.write(features, path)
        return encode.document(features, path, {})


Task = DepthTask | HumanTask | FeaturesTask


def shared_size(tasks: dict[str, Task], trunks: dict[str, SharedBackbone], photo: Photo) -> int | None:
    """The --size at which depth and features, where they have one encoder, see the same picture of this photo: depth's
    own, or the next smaller one at which the whole photo is whole patches. None where there is none of at least 3/4."""
    depth = tasks.get("depth")
    if not isinstance(depth, DepthTask) or trunks.get("depth") is None or trunks["depth"] is not trunks.get("features"):
        return None
    largest = depth.largest_px()
    if not depth.takes_any_sides():
        return largest
    patch = trunks["depth"].patch
    long, short = max(photo.width, photo.height), min(photo.width, photo.height)
    largest = min(largest, long)
    sizes = range(largest // patch * patch, int(0.75 * largest), -patch)
    return next((size for size in sizes if round(short * (size / long)) % patch == 0), None)


# `dune predict`: several tasks on a photo, one encoder pass for those that share an encoder.


TASKS = ("depth", "human", "features")
FILES = {"depth": "depth.png", "human": "people.obj", "features": "features.npz"}
REPORT = "predict.json"


@click.command(cls=GroupedCommand, short_help="Several tasks on a photo at once, sharing encoder passes.")
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO...")
@click.option("--tasks", "names", required=True, metavar="TASK,...", help=f"Of: {', '.join(TASKS)}.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="TASK=NAME|FILE",
    help="A task's model, as for its own verb: depth=, human=, features= (an encoder). Repeat for several.  [default: "
    "the best one on this machine; for features --encoder]",
)
@click.option("--encoder", metavar="NAME|FILE", help="The encoder of the depth head or model, and of features.")
@click.option("--body-models", metavar="DIR", help="As for dune human: folder with smplx/SMPLX_NEUTRAL.npz.")
@click.option(
    "--min-score",
    type=options.FiniteRange(0, 1),
    default=0.3,
    show_default=True,
    help="As for dune human: least confidence of a person's head, in [0, 1].",
)
@options.size
@options.cameras
@options.compute
@options.output(True, "A folder: a folder for each photo, with depth.png, people.obj, features.npz, each with a JSON.")
@options.as_json
@options.common
def command(
    photos: tuple[str, ...],
    names: str,
    models: tuple[str, ...],
    encoder: str | None,
    body_models: str | None,
    min_score: float,
    size: int | None,
    intrinsics: str | None,
    fov_deg: float | None,
    device: str,
    dtype: str,
    output: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Depth, people and features of photos, with one encoder pass for tasks that see one picture with one encoder.

    The files are those of dune depth, dune human and dune encode, byte for byte but for the JSONs' provenance;
    predict.json in each photo's folder names those commands and says how many encoder passes were run. Encoders count
    as one if their weights are equal. Without --size, depth and features of one encoder are predicted at a common size,
    at which they see the same picture: depth's own, or up to a quarter less. dune human always sees the photo in a
    square of its own size, so it takes part in a shared pass only for a photo that is that square.

    \b
    Example: dune predict photo.jpg --tasks depth,human -o out/
             dune predict photo.jpg --tasks depth,features --model depth=dinov2-vits14-nyu-dpt \\
                 --encoder dinov2-vits14 -o out/
    """
    from dune_cli.io.inputs import expand
    from dune_cli.io.intrinsics import one_by_one
    from dune_cli.io.json_files import dumps, write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.provenance import Run

    wanted = _names(names)
    chosen = _models(models, wanted)
    if "features" in wanted and encoder is None and "features" not in chosen:
        raise UserError("features need an encoder: give --encoder, or --model features=NAME|FILE")
    paths = expand(photos)
    folders = _folders(paths, output, wanted, overwrite)
    given = one_by_one(intrinsics, len(paths))

    for name in wanted:
        if name == "features":
            checks.weights(chosen.get(name), encoder)
        else:
            checks.model_of(name, chosen.get(name), encoder if name == "depth" else None)

    # MERGED
    from dune_cli.models.shared_backbone import share

    run = Run()
    wishes = Wishes(chosen, encoder, body_models, min_score, size, fov_deg, device, dtype)
    with run.stage("load"):
        tasks = _load(wanted, wishes)
        trunks = share([slot for slot in (task.slot() for task in tasks.values()) if slot is not None])
    for source in {source.name: source for task in tasks.values() for source in task.sources}.values():
        console.note(f"{source.name}, licence: {source.licence}")
    reports = []
    for path, camera, folder in console.progress(list(zip(paths, given, folders)), "predict", unit="photo"):
        with run.stage("read"):
            photo = read_photo(path)
        report = _predict(photo, camera, folder, tasks, trunks, wishes, run)
        write_json(folder / REPORT, report)
        reports.append(report)
        passes = report["encoder_passes"]
        console.note(f"{path.name}: {len(tasks)} tasks, {passes} encoder {'pass' if passes == 1 else 'passes'}")
        if not as_json:
            console.result(*(folder / name for name in [*(FILES[name] for name in tasks), REPORT]))
    if as_json:
        console.document(dumps(reports[0] if len(reports) == 1 else reports))


def _predict(
    photo: Photo,
    camera: str | None,
    folder: Path,
    tasks: dict[str, Task],
    trunks: dict[str, Any],
    wishes: Wishes,
    run: Run,
) -> dict[str, Any]:
    """Runs all tasks on a photo and writes their files and JSONs; what predict.json says."""
    # MERGED
    from dune_cli.io.json_files import write_json

    size = wishes.size or shared_size(tasks, trunks, photo)
    distinct = {id(trunk): trunk for trunk in trunks.values()}
    before = {key: trunk.passes for key, trunk in distinct.items()}
    inputs = [(photo.path, photo.sha256)]
    entries = {}
    for name, task in tasks.items():
        path = folder / task.file
        tree = task.predict(photo, camera, size, path, run)
        tree["provenance"] = run.provenance(task.sources, inputs, dtype=wishes.dtype)
        write_json(path.with_suffix(".json"), tree)
        same_as = _single(task, photo, camera, size, path, wishes)
        entries[name] = {"file": task.file, "json": path.with_suffix(".json").name, "same_as": same_as}
    encoders = [
        {
            "tasks": [name for name in tasks if trunks.get(name) is trunk],
            "passes": trunk.passes - before[key],
        }
        for key, trunk in distinct.items()
    ]
    # what is no ViT is not shared: its task alone runs it, once
    encoders += [{"tasks": [name], "passes": 1} for name in tasks if name not in trunks]
    sources = {source.name: source for task in tasks.values() for source in task.sources}
    return {
        "schema": "dune.predict/1",
        "image": {"path": str(photo.path), "width": photo.width, "height": photo.height},
        "tasks": entries,
        "encoder_passes": sum(entry["passes"] for entry in encoders),
        "encoders": encoders,
        "provenance": run.provenance(list(sources.values()), inputs, dtype=wishes.dtype),
    }


def _single(task: Task, photo: Photo, camera: str | None, size: int | None, path: Path, wishes: Wishes) -> str:
    """The command of the task's own verb that writes the same file."""
    words = ["dune", task.verb, str(photo.path), "-o", str(path)]
    model = wishes.models.get(task.name) or (wishes.encoder if task.name == "features" else task.sources[0].name)
    options_of: dict[str, Any] = {"--model": model}
    if task.name == "depth":
        options_of["--encoder"] = wishes.encoder
    if task.name != "human":
        options_of["--size"] = size
    else:
        options_of |= {"--body-models": wishes.body_models, "--min-score": wishes.min_score}
    if task.name != "features":
        options_of |= {"--intrinsics": camera, "--fov-deg": wishes.fov_deg}
    options_of |= {"--device": wishes.device, "--dtype": wishes.dtype}
    return shlex.join(words + [str(word) for pair in options_of.items() if pair[1] is not None for word in pair])


def _names(text: str) -> list[str]:
    names = options.listed(text)
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise UserError(f"--tasks {text!r}: {', '.join(unknown) or 'nothing'} is no task; allowed: {', '.join(TASKS)}")
    return names


def _models(words: tuple[str, ...], wanted: list[str]) -> dict[str, str]:
    """TASK=MODEL words by task."""
    models: dict[str, str] = {}
    for word in words:
        task, equals, model = word.partition("=")
        if not equals or not model or task not in TASKS:
            raise UserError(f"--model {word!r} is not TASK=NAME|FILE; allowed tasks: {', '.join(TASKS)}")
        if task not in wanted:
            raise UserError(f"--model {word!r} is for a task that --tasks does not name ({', '.join(wanted)})")
        if task in models:
            raise UserError(f"--model {task}= was given twice; give it once")
        models[task] = model
    return models


def _folders(paths: list[Path], output: str, wanted: list[str], overwrite: bool) -> list[Path]:
    """A folder for each photo, whose files can be written."""
    from dune_cli.io.outputs import check_output, unique_stems

    folders = [Path(output).expanduser() / name for name in unique_stems(paths)]
    for folder in folders:
        for name in [FILES[task] for task in wanted] + [REPORT]:
            path = folder / name
            check_output(path, (path.suffix,), overwrite)
            check_output(path.with_suffix(".json"), (".json",), overwrite)
    return folders


def _load(wanted: list[str], wishes: Wishes) -> dict[str, Task]:
    """The tasks with their models, all loaded before the first photo."""
    # MERGED

    tasks: dict[str, Task] = {}
    for name in wanted:
        if name == "features":
            tasks[name] = FeaturesTask(wishes, wishes.models.get(name) or wishes.encoder or "")
        else:
            tasks[name] = (DepthTask if name == "depth" else HumanTask)(wishes)
    return tasks
