"""People in a photo of any shape: letterboxed for the network, and every pixel back in the photo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from dune_cli.errors import UserError
from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import letterbox
from dune_cli.io.video import Frame
from dune_cli.models.multihmr_common import MIN_SCORE
from dune_cli.provenance import Run
from dune_cli.tasks.human.model import HumanModel, Person
from dune_cli.tasks.human.tracking import PersonTracker, PersonTrackerConfig

# the heads count pixels from the image's corner, this package from the centre of its first pixel
CORNER_FROM_CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
CameraSource = Literal["given", "exif", "predicted", "default"]


@dataclass(frozen=True)
class PhotoPeople:
    """The `people` of a photo, all pixels in those of the photo (centres at integers), and the camera `K` (3, 3)
    float64 likewise, in front of which they stand. `numbers`: who each of them is, in a video; None: 0, 1, ..."""

    photo: Photo
    people: tuple[Person, ...]
    K: np.ndarray
    camera_source: CameraSource
    numbers: tuple[int, ...] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The number of each person, which names the mesh and picks its colour."""
        return tuple(range(len(self.people))) if self.numbers is None else self.numbers


def cameras(
    photos: Sequence[Photo], intrinsics: str | None, fov_deg: float | None
) -> list[tuple[np.ndarray | None, CameraSource | None]]:
    """(K, source) of each photo as `resolve_intrinsics` says, but (None, None) where the network shall say it."""
    known = resolve_intrinsics(photos, intrinsics, fov_deg)
    return [(None, None) if source == "default" else (K, source) for K, source in known]


def predict(
    model: HumanModel,
    photo: Photo,
    K: np.ndarray | None = None,
    source: CameraSource | None = None,
    min_score: float = MIN_SCORE,
) -> PhotoPeople:
    """The people in a photo, in the order that the head gives them.

    `K` (3, 3) of the photo, pixel centres at integers, and where it came from; None: predicted from the photo (Anny),
    or 60 degrees across its long side (SMPL-X).
    """
    square = letterbox(photo.rgb, model.size_px)
    network_from_photo = CORNER_FROM_CENTRE @ square.network_from_image
    image = torch.from_numpy(square.image)[None]
    given = None if K is None else torch.from_numpy(network_from_photo @ K).float()[None]
    with torch.inference_mode():
        (found,) = model.network(image, given, min_score)
        people = model.people(found)
    photo_from_network = np.linalg.inv(network_from_photo)
    if K is None:
        K = photo_from_network @ found.K.double().cpu().numpy()
        source = "predicted" if model.network.predicts_camera else "default"
    scale = torch.from_numpy(photo_from_network.diagonal()[:2].copy()).float()
    shift = torch.from_numpy(photo_from_network[:2, 2].copy()).float()
    return PhotoPeople(photo, tuple(_moved(person, scale, shift) for person in people), K, source or "given")


def select(found: PhotoPeople, which: str) -> PhotoPeople:
    """`which`: "all", "largest", or a number N for the N largest by the area of their boxes inside the photo.

    The order stays. UserError for other words.
    """
    if which == "all":
        return found
    count = parse_selection(which)
    corner = torch.tensor([found.photo.width - 0.5, found.photo.height - 0.5])
    areas = [_area(person.bbox_xyxy, corner) for person in found.people]
    kept = sorted(sorted(range(len(areas)), key=lambda k: -areas[k])[:count])
    numbers = None if found.numbers is None else tuple(found.numbers[k] for k in kept)
    return replace(found, people=tuple(found.people[k] for k in kept), numbers=numbers)


def parse_selection(which: str) -> int | None:
    """How many of the largest people are meant; None for all. UserError for other words."""
    if which == "all":
        return None
    if which == "largest":
        return 1
    if which.isascii() and which.isdecimal() and int(which) > 0:
        return int(which)
    raise UserError(f"--select {which!r} is not known; allowed: all, largest, or a number of people such as 2")


def _area(box: torch.Tensor, corner: torch.Tensor) -> float:
    return float((torch.minimum(box[2:], corner) - box[:2].clamp_min(-0.5)).clamp_min(0).prod())


def _moved(person: Person, scale: torch.Tensor, shift: torch.Tensor) -> Person:
    """`person` on the CPU with its pixels times `scale` (2,) plus `shift` (2,)."""
    on_cpu = {name: value.cpu() for name, value in vars(person).items() if isinstance(value, torch.Tensor)}
    return replace(
        person,
        **on_cpu
        | {
            "shape": {name: value.cpu() for name, value in person.shape.items()},
            "bbox_xyxy": (on_cpu["bbox_xyxy"].unflatten(0, (2, 2)) * scale + shift).flatten(),
            "head_px": on_cpu["head_px"] * scale + shift,
            "joints2d": on_cpu["joints2d"] * scale + shift,
        },
    )


# People in a video: each frame's, and who is who from frame to frame.


def predict_frames(
    model: HumanModel,
    frames: Iterable[tuple[Frame, Photo]],
    K: np.ndarray | None = None,
    source: CameraSource | None = None,
    min_score: float = MIN_SCORE,
    tracking: PersonTrackerConfig | None = None,
    run: Run | None = None,
) -> Iterator[tuple[Frame, PhotoPeople]]:
    """The people of each frame of a video, given with its picture; `numbers` says who they are (geometry/tracking.py).

    All frames are of one camera: where `K` is None and the model predicts it, the first frame with people decides.
    """
    run, tracker = run or Run(), PersonTracker(tracking)
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
