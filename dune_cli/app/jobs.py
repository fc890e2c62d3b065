"""What the page of `dune app` can ask for: photos to results in a folder, by the functions of `dune_cli.api`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dune_cli import api, console, previews
from dune_cli.app.uploads import Upload
from dune_cli.errors import DuneError, UserError
from dune_cli.io.cache import WorkFolder
from dune_cli.io.inputs import is_video
from dune_cli.io.json_files import write_json
from dune_cli.progress import Progress, listening, plural
from dune_cli.provenance import Run
from dune_cli.sfm.keyframes import extract_keyframes
from dune_cli.sfm.relative_pose import Relocalization
from dune_cli.tasks import reloc
from dune_cli.tasks.view.page import PageSettings, open_page

WAITING, RUNNING, DONE, STOPPED = "waiting", "running", "done", "stopped"
VIEW_POINTS = 300_000  # of a page in three dimensions
FEWEST = {"scene": 2, "pose": 2}  # photos that a task needs; others need one
FRAMES_PER_S = 2.0
UNKNOWN_SCALE = "the scale is unknown: give the distance of the two cameras, if you know it"


@dataclass(frozen=True)
class Request:
    """What is wanted of an upload: `tasks` of TASKS; where they are known, the field of view across the long side in
    degrees and the distance of the first two cameras in metres."""

    tasks: tuple[str, ...]
    fov_deg: float | None = None
    baseline: float | None = None

    def check(self, uploads: list[Path]) -> None:
        """UserError for a task that the files are too few or too many for."""
        if not self.tasks:
            raise UserError("nothing was chosen; choose at least one of what you want to get")
        videos = any(map(is_video, uploads))
        if not videos and len(uploads) < max(FEWEST.get(task, 1) for task in self.tasks):
            raise UserError("a scene and a pose need two photos of the same place or more, and one was given; add one")
        if "pose" in self.tasks and (videos or len(uploads) != 2):
            raise UserError(f"a pose is that of one photo to another, and {len(uploads)} files were given; give two")


@dataclass
class Shown:
    """A result on the page: `text`, the names of a `picture`, of a `page` in three dimensions, and of all `files`."""

    title: str
    text: str = ""
    picture: str | None = None
    page: str | None = None
    files: list[str] = field(default_factory=list)
    failed: bool = False


@dataclass
class AppJob:
    """An upload at work. `folder` holds its results."""

    number: int
    upload: Upload
    request: Request
    state: str = WAITING
    step: str = ""
    within: str = ""  # the step
    done: int = 0
    total: int = 0
    error: str = ""
    shown: list[Shown] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def hear(self, progress: Progress) -> None:
        """Keeps what a step says of itself. Cancelled where the job is to end."""
        if self.cancelled.is_set():
            raise Cancelled
        known = f" of {progress.total}" if progress.total else ""
        self.within = (
            f"{progress.step}: {progress.done}{known} {plural(progress.unit)}" if progress.unit else progress.step
        )

    @property
    def folder(self) -> Path:
        return self.upload.folder / "results"


class Cancelled(Exception):
    """A job was stopped by its user."""


class Worker:
    """Does jobs one after the other in a thread of its own."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[AppJob] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def add(self, job: AppJob) -> None:
        self._waiting.put(job)

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            if not job.cancelled.is_set():
                run(job)
            else:
                job.state = STOPPED


def run(job: AppJob) -> None:
    """Does a job. What fails is said in `job.error` or in the result that failed; the rest goes on."""
    job.state = RUNNING
    with listening(job.hear):
        _run(job)
    job.step = job.within = ""


def _run(job: AppJob) -> None:
    try:
        job.folder.mkdir(exist_ok=True)
        job.step = "reading"
        with_frames = extract_keyframes(job.upload.files, FRAMES_PER_S, WorkFolder(job.upload.folder / "work"))
        photos = job.upload.evenly(with_frames)
        if len(photos) < len(with_frames):
            console.note(f"{len(photos)} of {len(with_frames)} frames are taken")
        steps = list(_steps(job, photos))
        job.total = len(steps)
        for number, (title, step) in enumerate(steps):
            if job.cancelled.is_set():
                break
            job.step, job.within, job.done = title, "", number
            try:
                job.shown.append(step())
            except DuneError as error:
                job.shown.append(Shown(title, str(error), failed=True))
        job.done = job.total if not job.cancelled.is_set() else job.done
        job.state = STOPPED if job.cancelled.is_set() else DONE
    except Cancelled:
        job.state = STOPPED
    except DuneError as error:
        job.error, job.state = str(error), STOPPED
    except Exception as error:  # a bug, or memory: the page says so, and other jobs go on
        job.error, job.state = f"{type(error).__name__}: {error}", STOPPED
        console.note(f"a job failed with {job.error}")


def _steps(job: AppJob, photos: list[Path]) -> Iterator[tuple[str, Callable[[], Shown]]]:
    for task in job.request.tasks:
        if task in PHOTO_TASKS:
            for photo in photos:
                yield (
                    f"{TASKS[task]}: {photo.name}",
                    lambda task=task, photo=photo: PHOTO_TASKS[task](job, photo),  # type: ignore[misc]
                )
        else:
            yield TASKS[task], lambda task=task: ALL_TASKS[task](job, photos)  # type: ignore[misc]


# --- one photo


def _depth(job: AppJob, photo: Path) -> Shown:
    result = api.depth(photo, fov_deg=job.request.fov_deg)
    name = f"{photo.stem}_depth"
    result.save(job.folder / f"{name}.png", overwrite=True)
    points = f"{photo.stem}_points"
    result.save(job.folder / f"{points}.ply", overwrite=True)
    unit = "m" if result.scale == "metric" else "times its median (the scale is unknown)"
    valid = result.depth[result.valid]
    shown = Shown(
        f"Depth of {photo.name}", f"{valid.min():.3g} to {valid.max():.3g} {unit}" if len(valid) else "no depth"
    )
    shown.files = [f"{name}.png", f"{name}.json", f"{points}.ply", f"{points}.json"]
    return _with_looks(job, shown, name, previews.picture(result), job.folder / f"{points}.ply")


def _people(job: AppJob, photo: Path) -> Shown:
    result = api.people(photo, fov_deg=job.request.fov_deg)
    shown = Shown(f"People in {photo.name}", f"{len(result.people)} found")
    if not result.people:
        return shown
    name = f"{photo.stem}_people"
    result.save(job.folder / f"{name}.glb", overwrite=True)
    shown.files = [f"{name}.glb", f"{name}.json"]
    return _with_looks(job, shown, name, previews.picture(result, result.meshes), job.folder / f"{name}.glb")


def _segments(job: AppJob, photo: Path) -> Shown:
    result = api.segment(photo)
    name = f"{photo.stem}_classes"
    document = result.save(job.folder / f"{name}.png", overwrite=True)
    parts = [f"{one['name'] or one['id']} {one['share']:.0%}" for one in document["classes"] if one["share"] >= 0.01]
    shown = Shown(f"Segments of {photo.name}", ", ".join(parts), files=[f"{name}.png", f"{name}.json"])
    return _with_looks(job, shown, name, previews.picture(result))


def _classes(job: AppJob, photo: Path) -> Shown:
    scores = api.classify(photo)
    words = [f"{one.name or one.index} {one.score:.1%}" for one in scores]
    return Shown(f"Classes of {photo.name}", ", ".join(words))


# --- all photos


def _scene(job: AppJob, photos: list[Path]) -> Shown:
    result = api.reconstruct(photos, fov_deg=job.request.fov_deg, baseline=job.request.baseline)
    result.save(job.folder / "scene.glb", overwrite=True)
    scale = "in metres" if result.scale == "metric" else UNKNOWN_SCALE
    text = f"{len(result.registered)} of {len(photos)} photos placed, {len(result.cloud()[0]):,} points, {scale}"
    shown = Shown("Scene", text, files=["scene.glb", "scene.json"])
    file = job.folder / "scene.glb"
    return _with_looks(job, shown, "scene", previews.scene_picture(result, file), file)


def _pose(job: AppJob, photos: list[Path]) -> Shown:
    reference, query = photos
    matched, found, source = api.match_and_relocalize(
        query, reference, fov_deg=job.request.fov_deg, baseline=job.request.baseline
    )
    made = Run().provenance([source], [(one.photo.path, one.photo.sha256) for one in (found.query, found.reference)])
    write_json(job.folder / "pose.json", reloc.document([found], made))
    shown = Shown("Pose", _pose_in_words(found), files=["pose.json"], failed=not found.success)
    return _with_looks(job, shown, "pose", previews.match_picture(matched, found))


def _pose_in_words(found: Relocalization) -> str:
    if found.ref_from_query is None:
        return found.message
    metric = found.scale == "metric"
    x, y, z = found.ref_from_query[:3, 3]
    length = f"{found.distance:.3g} m" if metric else UNKNOWN_SCALE
    return (
        f"From {found.reference.name} to {found.query.name} the camera turned by {found.rotation_deg:.2f} degrees and "
        f"moved along ({x:.3f}, {y:.3f}, {z:.3f}): x right, y down, z forward; {length}.\n{found.inliers} of "
        f"{found.matches} matches agree; confidence {found.confidence:.2f} of 1."
    )


def _with_looks(job: AppJob, shown: Shown, name: str, pictured: Any, solid: Path | None = None) -> Shown:
    """The result with its picture, and with a page of the file `solid` in three dimensions."""
    shown.picture = previews.save(pictured, job.folder / f"{name}_preview.png")
    shown.files.append(shown.picture)
    if solid is not None:
        page = open_page([solid], PageSettings(0, VIEW_POINTS))
        try:
            shown.page = f"{name}_3d.html"
            page.export(job.folder / shown.page)
        finally:
            page.close()
        shown.files.append(shown.page)
    return shown


def as_json(job: AppJob, link: Callable[[str], str]) -> dict[str, Any]:
    """What the page is told of a job; `link` gives the address of a file of its results."""
    return {
        "number": job.number,
        "state": job.state,
        "step": f"{job.step} ({job.within})" if job.within else job.step,
        "done": job.done,
        "total": job.total,
        "error": job.error,
        "shown": [
            {
                "title": one.title,
                "text": one.text,
                "failed": one.failed,
                "picture": one.picture and link(one.picture),
                "page": one.page and link(one.page),
                "files": [
                    {"name": name, "address": link(name), "bytes": (job.folder / name).stat().st_size}
                    for name in one.files
                    if (job.folder / name).is_file()
                ],
            }
            for one in list(job.shown)
        ],
    }


PHOTO_TASKS: dict[str, Callable[[AppJob, Path], Shown]] = {
    "depth": _depth,
    "people": _people,
    "segments": _segments,
    "classes": _classes,
}
ALL_TASKS: dict[str, Callable[[AppJob, list[Path]], Shown]] = {"scene": _scene, "pose": _pose}
TASKS = {
    "depth": "Depth",
    "people": "People",
    "segments": "Segments",
    "classes": "Classes",
    "scene": "Scene",
    "pose": "Pose",
}
