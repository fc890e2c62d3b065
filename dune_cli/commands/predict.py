"""`dune predict`: several tasks on a photo, one encoder pass for those that share an encoder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dune_cli import console, plugins
from dune_cli.commands import checks, options
from dune_cli.commands.human import BodyOptions
from dune_cli.commands.options import CameraOptions, ComputeOptions, option
from dune_cli.commands.prediction import PredictTask, TaskSettings
from dune_cli.commands.preview import PreviewedOutput
from dune_cli.commands.shards import (
    ShardOptions,
    compute_shards,
    each_once,
    one_camera,
    row_document,
    stored_weights,
)
from dune_cli.errors import UserError
from dune_cli.provenance import Run, Source

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.io.shards.files import Column
    from dune_cli.models.shared_backbone import SharedBackbone
    from dune_cli.tasks.large_folders.pipeline import PhotoResult

NEEDS = ("numpy", "torch", "cv2", "PIL")
REPORT, SHEET = "predict.json", "preview.png"
SHEET_PX = 480  # long side of a picture in the preview
VERBS = "dune_cli.commands"
_MODULES = [plugins.load(VERBS, verb) for verb in plugins.names(VERBS, "PREDICT_TASK")]
TASKS: dict[str, type[PredictTask]] = {one.name: one for one in (getattr(m, m.PREDICT_TASK) for m in _MODULES)}


DEFAULT_TASKS = ("depth", "segmentation", "classes", "features")  # those that need no downloaded weights


@options.group("Model")
class PredictOptions(BodyOptions):
    names: tuple[str, ...] = option(
        "--tasks NAME,...",
        f"Tasks to run: {', '.join(TASKS)}.",
        options.NameList(),
        ",".join(DEFAULT_TASKS),
        heading="Input",
    )
    words: tuple[str, ...] = option(
        "--task-model TASK=NAME|FILE",
        "Model of one task, as --model of its own verb. Repeatable.",
        multiple=True,
        aliases=["--model"],
        default_text=f"{options.BEST_MODEL}; for features --encoder, else dune-mini",
    )
    encoder: str | None = option("--encoder NAME|FILE", "Encoder of the depth model and of the features.")
    size: int | None = options.size_px()

    def models(self) -> dict[str, str | None]:
        """The model of each task, None for its default. UserError for what is no task or no model of one."""
        unknown = [name for name in self.names if name not in TASKS]
        given = ", ".join(self.names)
        if unknown or not self.names:
            wrong = ", ".join(unknown) or "nothing"
            raise UserError(f"--tasks {given!r}: {wrong} is no task; allowed: {', '.join(TASKS)}")
        models: dict[str, str] = {}
        for word in self.words:
            task, equals, model = word.partition("=")
            if not equals or not model or task not in TASKS:
                raise UserError(f"--task-model {word!r} is not TASK=NAME|FILE; allowed tasks: {', '.join(TASKS)}")
            if task not in self.names:
                raise UserError(f"--task-model {word!r} is for a task that --tasks does not name ({given})")
            if task in models:
                raise UserError(f"--task-model {task}= was given twice; give it once")
            models[task] = model
        return {name: models.get(name) for name in self.names}


@dataclass(frozen=True)
class Predictor:
    """The tasks by name, with their models loaded, and the encoder of each task that has a ViT."""

    tasks: dict[str, PredictTask]
    backbones: dict[str, SharedBackbone]
    size: int | None
    compute: ComputeOptions
    run: Run

    @classmethod
    def load(cls, tasks: dict[str, PredictTask], size: int | None, compute: ComputeOptions, run: Run) -> Predictor:
        """Loads the models of the tasks; those with the same encoder share it."""
        from dune_cli.models.shared_backbone import share

        with run.stage("load"):
            for task in tasks.values():
                task.load()
            backbones = share([slot for slot in (task.slot() for task in tasks.values()) if slot is not None])
            for backbone in backbones.values():
                sharing = [tasks[name] for name, one in backbones.items() if one is backbone]
                if any(task.whole for task in sharing):
                    for task in sharing:
                        task.see_whole()
        return cls(tasks, backbones, size, compute, run)

    @property
    def sources(self) -> list[Source]:
        """Those of all tasks, each once."""
        return list({source.name: source for task in self.tasks.values() for source in task.sources}.values())

    def size_for(self, photo: Photo) -> int | None:
        """--size, or that at which tasks that share an encoder see the same image of this photo."""
        if self.size is not None:
            return self.size
        for name, backbone in self.backbones.items():
            sharing = [other for other, one in self.backbones.items() if one is backbone and self.tasks[other].sized]
            if len(sharing) > 1 and (size := self.tasks[name].shared_size(photo, backbone.patch)) is not None:
                return size
        return None

    def predict(self, photo: Photo, cameras: CameraOptions, folder: Path) -> dict[str, Any]:
        """Runs all tasks on a photo and writes their files and JSONs. Returns the content of predict.json."""
        from dune_cli.io.json_files import write_json

        size = self.size_for(photo)
        distinct = {id(backbone): backbone for backbone in self.backbones.values()}
        before = {key: backbone.passes for key, backbone in distinct.items()}
        inputs = [(photo.path, photo.sha256)]
        entries = {}
        for name, task in self.tasks.items():
            path = folder / task.file
            document = task.predict(photo, cameras, size, path, self.run)
            document["provenance"] = self.run.provenance(task.sources, inputs, dtype=self.compute.dtype)
            write_json(path.with_suffix(".json"), document)
            verb, *more = task.command(cameras, size, self.compute)
            same_as = shlex.join(["dune", verb, str(photo.path), "-o", str(path), *more])
            entries[name] = {"file": task.file, "json": path.with_suffix(".json").name, "same_as": same_as}
        encoders = [
            {
                "tasks": [name for name in self.tasks if self.backbones.get(name) is backbone],
                "passes": backbone.passes - before[key],
            }
            for key, backbone in distinct.items()
        ]
        # what is no ViT is not shared: its task alone runs it, once
        encoders += [{"tasks": [name], "passes": 1} for name in self.tasks if name not in self.backbones]
        return {
            "schema": "dune.predict/1",
            "image": {"path": str(photo.path), "width": photo.width, "height": photo.height},
            "tasks": entries,
            "encoder_passes": sum(entry["passes"] for entry in encoders),
            "encoders": encoders,
            "provenance": self.run.provenance(self.sources, inputs, dtype=self.compute.dtype),
        }


@options.verb()
def command(
    *,
    photos: tuple[str, ...] = options.PHOTOS,
    chosen: PredictOptions,
    cameras: CameraOptions,
    compute: ComputeOptions,
    output: PreviewedOutput = options.adapt(
        preview=options.changed(
            PreviewedOutput, "preview", help="Also write preview.png, the results side by side.", default_text="preview"
        ),
        output=options.output_to(
            "a folder, with a folder for each photo and in it a file and a JSON file for each task.", required=True
        ),
    ),
    shards: ShardOptions,
) -> None:
    """Estimate depth, classes, people and features of photos with shared encoder passes.

    Tasks share a pass where they have the same encoder weights and the same network input. The files equal those of
    the tasks' own commands (dune depth, segment, classify, human and encode), except for the provenance in the JSON
    files. predict.json in the folder of each photo gives these commands and the number of encoder passes.

    Without --size, depth and features of one encoder use a common size: that of depth, or of a DINOv2 depth head up to
    a quarter less. Heads of dune train, as those that come with dune, see the whole photo, stretched to whole patches;
    features that share their encoder then do, too (dune encode --fit stretch). The network input of a Multi-HMR model
    is always a square of its own size, so that people share a pass only for photos that are such squares.

    --shards writes the results of large folders as WebDataset tar files, which hold the files of all tasks and one JSON
    file for each photo. The same command goes on after a kill, and torchrun or --engine ray spread it over machines.

    \b
    Example: dune predict photo.jpg -o out/
             dune predict photo.jpg --tasks depth,human -o out/
             dune predict photo.jpg --tasks depth,features --task-model depth=dinov2-vits14-nyu-dpt \\
                 --encoder dinov2-vits14 -o out/
             dune predict photos/ -o out/ --shards
    """
    if shards.wanted:
        shards.refuse_with(preview=output.preview)
        one_camera(cameras)
        return compute_shards(PredictShards.of(chosen, cameras, compute), photos, shards, compute, output)
    from dune_cli.io.inputs import expand
    from dune_cli.io.json_files import write_json
    from dune_cli.io.photos import read_photo
    from dune_cli.progress import amount

    shared = (chosen.encoder, chosen.body_models, chosen.min_score, compute)
    settings = {name: TaskSettings(model, *shared) for name, model in chosen.models().items()}
    paths = expand(photos)
    preview = output.preview is not False
    folders = _folders(paths, output, [*(TASKS[name].file for name in settings), *[SHEET] * preview])
    known = cameras.one_by_one(len(paths))
    checks.first_photo(paths)
    tasks = {name: TASKS[name](one) for name, one in settings.items()}

    run = Run()
    predictor = Predictor.load(tasks, chosen.size, compute, run)
    for source in predictor.sources:
        console.note(f"{source.name}, licence: {source.licence}")
    reports = []
    for path, camera, folder in console.progress(list(zip(paths, known, folders)), "predict", unit="photo"):
        with run.stage("read"):
            photo = read_photo(path)
        report = predictor.predict(photo, camera, folder)
        shown = [task.pictured for task in tasks.values() if task.pictured is not None]
        if preview and shown:
            from dune_cli import previews

            with run.stage("preview"):
                sheet = previews.side_by_side([previews.small(previews.picture(*one), SHEET_PX) for one in shown])
                report["preview"] = previews.save(sheet, folder / SHEET)
        write_json(folder / REPORT, report)
        reports.append(report)
        passes = report["encoder_passes"]
        done = amount(len(tasks), "task")
        console.note(f"{path.name}: {done}, {passes} encoder {'pass' if passes == 1 else 'passes'}")
        output.print_lines(*(folder / name for name in [*(task.file for task in tasks.values()), REPORT]))
    output.print_json(reports)


def _folders(paths: list[Path], output: PreviewedOutput, files: list[str]) -> list[Path]:
    """A folder for each photo, whose files can be written."""
    from dune_cli.io.outputs import check_output, unique_stems

    folders = [Path(output.output).expanduser() / name for name in unique_stems(paths)]
    for folder in folders:
        for path in (folder / name for name in [*files, REPORT]):
            check_output(path, (path.suffix,), output.overwrite)
            check_output(path.with_suffix(".json"), (".json",), output.overwrite)
    return folders


@dataclass(frozen=True)
class PredictShards:
    """The results of several tasks in shards: the file of each task, and one JSON file, for each photo."""

    models: Mapping[str, str]
    encoder: str | None
    body_models: str | None
    min_score: float
    size: int | None
    intrinsics: str | None
    fov_deg: float | None
    dtype: str

    name = "predict"
    kind = "tar"
    batch_size = 1

    @classmethod
    def of(cls, chosen: PredictOptions, cameras: CameraOptions, compute: ComputeOptions) -> PredictShards:
        """UserError or WeightsMissing for models that are not here."""
        (encoder,) = stored_weights(chosen.encoder)
        shared = (encoder, chosen.body_models, chosen.min_score)
        models = {}
        for name, model in chosen.models().items():
            (models[name],) = stored_weights(TASKS[name](TaskSettings(model, *shared, compute)).model)
        return cls(models, *shared, chosen.size, cameras.intrinsics, cameras.fov_deg, compute.dtype)

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str) -> PredictShardNetwork:
        compute = ComputeOptions(device=device, dtype=self.dtype)
        shared = (self.encoder, self.body_models, self.min_score, compute)
        tasks = {name: TASKS[name](TaskSettings(model, *shared)) for name, model in self.models.items()}
        cameras = CameraOptions(intrinsics=self.intrinsics, fov_deg=self.fov_deg)
        return PredictShardNetwork(Predictor.load(tasks, self.size, compute, Run()), cameras)


class PredictShardNetwork:
    """Several tasks as shards use them."""

    columns: Sequence[Column] = ()
    keeps_pixels = False

    def __init__(self, predictor: Predictor, cameras: CameraOptions) -> None:
        self.predictor, self.cameras, self.sources = predictor, cameras, predictor.sources

    def prepare(self, photo: Photo) -> tuple[None, Photo]:
        return None, photo

    def predict(self, inputs: Sequence[Photo]) -> list[PhotoResult]:
        return each_once(self._result, inputs)

    def _result(self, photo: Photo) -> PhotoResult:
        from dune_cli.io.outputs import scratch_folder
        from dune_cli.tasks.large_folders.pipeline import PhotoResult

        predictor = self.predictor
        size = predictor.size_for(photo)
        files, documents = {}, {}
        with scratch_folder() as folder:
            for name, task in predictor.tasks.items():
                path = folder / task.file
                documents[name] = row_document(task.predict(photo, self.cameras, size, path, predictor.run))
                if path.exists():  # classes are in the JSON alone
                    files[task.file] = path.read_bytes()
        return PhotoResult(files=files, document=documents)

    def finish(self, photo: Photo, result: PhotoResult) -> PhotoResult:
        return result
