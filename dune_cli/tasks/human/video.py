"""People in a video: each frame's, and who is who from frame to frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dune_cli.geometry.tracking import Tracker, TrackerConfig
from dune_cli.io.photos import Photo
from dune_cli.io.video import Frame
from dune_cli.models.human.detection import MIN_SCORE
from dune_cli.provenance import Run
from dune_cli.tasks.human.model import HumanModel
from dune_cli.tasks.human.photo import CameraSource, PhotoPeople, predict


def predict_frames(
    model: HumanModel,
    frames: Iterable[tuple[Frame, Photo]],
    K: np.ndarray | None = None,
    source: CameraSource | None = None,
    min_score: float = MIN_SCORE,
    tracking: TrackerConfig | None = None,
    run: Run | None = None,
) -> Iterator[tuple[Frame, PhotoPeople]]:
    """The people of each frame of a video, given with its picture; `numbers` says who they are (geometry/tracking.py).

    All frames are of one camera: where `K` is None and the model predicts it, the first frame with people decides.
    """
    run, tracker = run or Run(), Tracker(tracking)
    for frame, photo in frames:
        with run.stage("predict"):
            found = predict(model, photo, K, source, min_score)
            heads = np.array([person.head.numpy() for person in found.people], np.float64).reshape(-1, 3)
            numbers = tuple(tracker.update(frame.time_s, heads))
        if K is None and found.people:
            K, source = found.K, found.camera_source
        yield frame, replace(found, numbers=numbers)


@dataclass
class _Seen:
    first: int
    last: int
    frames: int


class Sightings:
    """When each person of a video was seen."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def add(self, frame: Frame, found: PhotoPeople) -> None:
        """Counts one frame's people."""
        for number in found.ids:
            seen = self._seen.setdefault(number, _Seen(frame.index, frame.index, 0))
            seen.last, seen.frames = frame.index, seen.frames + 1

    def facts(self) -> list[dict[str, Any]]:
        """For the JSON: of each person the id, the first and the last frame's index, and in how many frames."""
        return [
            {"id": number, "first_frame": seen.first, "last_frame": seen.last, "frames": seen.frames}
            for number, seen in sorted(self._seen.items())
        ]
