"""What the verbs that read videos share: the frames one by one, their lines and files, and what is said in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dune_cli import console
from dune_cli.errors import UserError
from dune_cli.provenance import Run

if TYPE_CHECKING:
    from dune_cli.io.photos import Photo
    from dune_cli.io.video import Frame, Video

    Shots = Iterable[tuple[Frame, Photo]]

R = TypeVar("R")


def check_fps(fps: float | None, paths: Sequence[Path]) -> None:
    """UserError for --fps without a video."""
    from dune_cli.io.inputs import is_video

    if fps is not None and not any(map(is_video, paths)):
        raise UserError("--fps thins out the frames of videos, and no video was named; leave it out")


def read_first(path: Path) -> Photo:
    """A photo, or the first frame of a video."""
    from dune_cli.io.inputs import is_video
    from dune_cli.io.photos import read_photo
    from dune_cli.io.video import first_frame

    return first_frame(path) if is_video(path) else read_photo(path)


def progress(items: Iterable[R], task: str, paths: Sequence[Path]) -> Iterable[R]:
    """`items`, one of each of `paths`, behind a bar where all are photos; a video has its own."""
    from dune_cli.io.inputs import is_video

    return items if any(map(is_video, paths)) else console.progress(items, task, len(paths), "photo")


def work(
    task: str,
    first: Photo,
    fps: float | None,
    folder: Path,
    run: Run,
    predict: Callable[[Shots], Iterator[tuple[Frame, R]]],
    write: Callable[[Frame, R], tuple[dict[str, Any], Sequence[Path]]],
    facts: Callable[[], dict[str, Any]],
    provenance: Callable[[], dict[str, Any]],
    show_paths: bool,
) -> dict[str, Any]:
    """Every frame of the video whose `first` frame is given: `predict`ed, written into `folder`; gives `video.json`.

    `write` puts a frame's files where they belong, and returns what its line in `frames.jsonl` says and the files.
    `facts` and `provenance` are asked at the end, for `video.json`.
    """
    from dune_cli.io.video import Video, frame_lines, write_summary

    with Video(first.path, fps) as video, frame_lines(folder) as lines:
        for frame, result in predict(_shots(video, first.sha256, task, run)):
            with run.stage("write"):
                document, files = write(frame, result)
                lines.add(frame, document)
            if show_paths:
                for file in files:
                    console.result(file)
    summary = write_summary(folder, task, video, lines.count, facts(), provenance())
    console.note(
        f"{first.path.name}: {lines.count} frames of {video.end_s:.2f} s; {folder / summary['frames']['file']}"
    )
    return summary


def _shots(video: Video, sha256: str, task: str, run: Run) -> Shots:
    """Frames and their pictures, behind a progress bar; the time to decode counts as "read"."""
    from dune_cli.io.photos import Photo

    for frame in console.progress(_timed(video, run), f"{task} {video.path.name}", video.expected, "frame"):
        yield frame, Photo(video.path, frame.rgb, sha256)


def _timed(video: Video, run: Run) -> Iterator[Frame]:
    frames = iter(video)
    while True:
        with run.stage("read"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
