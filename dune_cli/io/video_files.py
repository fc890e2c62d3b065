"""Results of a video: a folder with a file a frame, `frames.jsonl` with a line a frame, and `video.json` about all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dune_cli.io.jsons import json_lines, write_json
from dune_cli.io.video import Frame, Video

SCHEMA = "dune.video/1"
LINES, SUMMARY = "frames.jsonl", "video.json"


def frame_file(folder: Path, index: int, ending: str) -> Path:
    """A frame's file, by its place in the video: 000123.png."""
    return folder / f"{index:06d}.{ending}"


class FrameLines:
    """The lines of `frames.jsonl`: what a photo's JSON says, with `frame` (index, time_s); video.json says the rest."""

    def __init__(self, write: Any) -> None:
        self._write, self.count = write, 0

    def add(self, frame: Frame, document: dict[str, Any]) -> None:
        """Writes one frame's line."""
        self.count += 1
        self._write(
            {
                "frame": {"index": frame.index, "time_s": round(frame.time_s, 6)},
                **document,
                "provenance": {"file": SUMMARY},
            }
        )


@contextmanager
def frame_lines(folder: Path) -> Iterator[FrameLines]:
    """`frames.jsonl` in `folder`, there once all lines are."""
    with json_lines(folder / LINES) as write:
        yield FrameLines(write)


def write_summary(
    folder: Path, task: str, video: Video, count: int, facts: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """Writes `video.json` about a video that was iterated, and returns it: `count` frames were worked on."""
    document = {
        "schema": SCHEMA,
        "task": task,
        "video": {
            "file": str(video.path),
            "width": video.width,
            "height": video.height,
            "rate_hz": video.rate_hz,
            "frames": video.decoded,
            "end_s": round(video.end_s, 6),
            "announced_s": video.announced_s,
            "complete": video.complete,
        },
        "fps": video.fps,
        "frames": {"file": LINES, "count": count},
        **facts,
        "provenance": provenance,
    }
    write_json(folder / SUMMARY, document)
    return document
