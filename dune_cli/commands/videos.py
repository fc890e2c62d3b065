"""What the verbs that read videos share: the frames one by one, their lines and files, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dune_cli import console
from dune_cli.commands.options import OutputOptions
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.io.video import Frame, PhotoSequence, Video, VideoFiles

    FramePhotos = Iterable[tuple[Frame, Photo]]

R = TypeVar("R")


@dataclass(frozen=True)
class VideoJob:
    """A video to process: its `first` frame, the frames per second to take (None: all), and its JSON files."""

    task: str
    first: Photo
    fps: float | None
    files: VideoFiles
    run: Run
    output: OutputOptions
    photos: PhotoSequence | None = None  # frames instead of a video's


def read_first(path: Path) -> Photo:
    """A photo, or the first frame of a video."""
    from dune_cli.io.inputs import is_video
    from dune_cli.io.photos import read_photo
    from dune_cli.io.video import first_frame

    return first_frame(path) if is_video(path) else read_photo(path)


def progress(items: Iterable[R], task: str, paths: Sequence[Path]) -> Iterable[R]:
    """`items`, one for each of `paths`, with progress where all are photos; a video reports its own."""
    from dune_cli.io.inputs import is_video

    return items if any(map(is_video, paths)) else console.progress(items, task, len(paths), "photo")


def process(
    job: VideoJob,
    predict: Callable[[FramePhotos], Iterator[tuple[Frame, R]]],
    write: Callable[[Frame, R], tuple[dict[str, Any], Sequence[Path]]],
    metadata: Callable[[], dict[str, Any]],
    provenance: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Predicts and writes each frame of a video, with its lines; returns what is written as the summary.

    `write` writes the files of a frame, and returns its line and the files. `metadata` and `provenance` are called at
    the end, for the summary.
    """
    from dune_cli.io.video import Video, frame_lines, write_summary

    clip = Video(job.first.path, job.fps) if job.photos is None else job.photos
    with clip as video, frame_lines(job.files) as lines:
        for frame, result in predict(_frames(video, job)):
            with job.run.stage("write"):
                document, files = write(frame, result)
                lines.add(frame, document)
            job.output.print_lines(*files)
    summary = write_summary(job.files, job.task, video, lines.count, metadata(), provenance())
    console.note(f"{video.path.name}: {lines.count} frames of {video.end_s:.2f} s; {job.files.lines}")
    return summary


def _frames(video: Video | PhotoSequence, job: VideoJob) -> FramePhotos:
    """Frames and their images, with progress; the time to decode counts as "read"."""
    from dune_cli.io.photos import Photo

    name = f"{job.task} {video.path.name}"
    for frame in console.progress(_timed(video, job.run), name, video.expected, "frame"):
        yield frame, Photo(video.path, frame.rgb, job.first.sha256)


def _timed(video: Video | PhotoSequence, run: Run) -> Iterator[Frame]:
    frames = iter(video)
    while True:
        with run.stage("read"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
