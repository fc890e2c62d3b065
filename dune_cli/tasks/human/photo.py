"""People in photos of any shape and in videos: letterboxed for the network, and mapped back to the photo's pixels.

The network sees a photo with a lens undistorted; the people are in metres in the lens's frame, and their pixels are
those of the photo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from dune_cli.bodies.statures import AssumedHeight, assumed_height
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera, resolve_cameras
from dune_cli.io.photos import Photo
from dune_cli.io.preprocess import letterbox
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.io.video import Frame
from dune_cli.models.multihmr_common import MIN_SCORE
from dune_cli.provenance import Run
from dune_cli.tasks.human.fitted import FittedHumanModel
from dune_cli.tasks.human.model import HumanModel, Person
from dune_cli.tasks.human.tracking import PersonTracker, PersonTrackerConfig

# from pixel centres at integers to the published heads' pixels, which begin at the image's corner
CORNER_FROM_CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
CameraSource = Literal["given", "exif", "predicted", "default"]


@dataclass(frozen=True)
class PhotoPeople:
    """The people of a photo, in its pixels (centres at integers).

    K: (3, 3) float64, of the camera. track_ids: of each person in a video; None: 0, 1, ... assumed_height: from which
    distances and sizes follow; None: the network predicts metres. lens: the photo's camera, where it has distortion,
    whose pinhole part is K.
    """

    photo: Photo
    people: tuple[Person, ...]
    K: np.ndarray
    camera_source: CameraSource
    track_ids: tuple[int, ...] | None = None
    assumed_height: AssumedHeight | None = None
    lens: Camera | None = None

    @property
    def pinhole_K(self) -> np.ndarray:
        """(3, 3) of the pinhole camera that shows what the photo does: K; of a photo with a lens that of the
        undistorted photo, of the same size, that the network saw."""
        return self.K if self.lens is None else StraightPhoto.of(self.lens).K

    @property
    def ids(self) -> tuple[int, ...]:
        """The id of each person, by which the mesh is named and coloured."""
        return tuple(range(len(self.people))) if self.track_ids is None else self.track_ids


def cameras(photos: Sequence[Photo], intrinsics: str | None, fov_deg: float | None) -> list[PhotoCamera | None]:
    """The camera of each photo by `resolve_cameras`; None where the network predicts it."""
    resolved = resolve_cameras(photos, intrinsics, fov_deg)
    return [None if camera.source == "default" else camera for camera in resolved]


def predict(
    model: HumanModel | FittedHumanModel,
    photo: Photo,
    camera: PhotoCamera | None = None,
    min_score: float = MIN_SCORE,
    heights: Sequence[float] | None = None,
) -> PhotoPeople:
    """The people in a photo, in the network's order; of fitted bodies, from left to right.

    camera: of the photo; of one with a lens the network sees the undistorted photo, up to 60 degrees from the axis.
    None: predicted (Multi-HMR on Anny), 60 degrees across the long side (SMPL-X), 55 (fitted bodies, heads). heights:
    standing, in metres, of fitted bodies: one for all or one a person; None: assumed. UserError for another number of
    them, or for a model that predicts sizes.
    """
    if heights is not None and not isinstance(model, FittedHumanModel):
        raise UserError(f"{model.source.name} predicts sizes in metres; leave --height out, or take --model bundled")
    K, source = (None, None) if camera is None else (camera.K, camera.source)
    lens = None if camera is None else camera.lens
    straight = None if lens is None else StraightPhoto.of(lens)
    seen = photo if straight is None else replace(photo, rgb=straight.image(photo.rgb))
    seen_K = K if straight is None else straight.K
    if isinstance(model, FittedHumanModel):
        found = _predict_fitted(model, seen, seen_K, source, min_score, heights, straight)
    else:
        found = _predict_whole(model, seen, seen_K, source, min_score)
    if straight is None or K is None:
        return found
    people = tuple(through_lens(person, straight.camera, model.body.surface) for person in found.people)
    return replace(found, photo=photo, people=people, K=K, lens=straight.camera)


def _predict_whole(
    model: HumanModel, photo: Photo, K: np.ndarray | None, source: CameraSource | None, min_score: float
) -> PhotoPeople:
    """By a network that sees the whole photo in a square."""
    square = letterbox(photo.rgb, model.size_px)
    network_from_photo = CORNER_FROM_CENTRE @ square.network_from_image
    image = torch.from_numpy(square.image)[None]
    given = None if K is None else torch.from_numpy(network_from_photo @ K).float()[None]
    with torch.inference_mode():
        (detections,) = model.network(image, given, min_score)
        people = model.people(detections)
    photo_from_network = np.linalg.inv(network_from_photo)
    if K is None:
        K = photo_from_network @ detections.K.double().cpu().numpy()
        source = "predicted" if model.network.predicts_camera else "default"
    scale = torch.from_numpy(photo_from_network.diagonal()[:2].copy()).float()
    shift = torch.from_numpy(photo_from_network[:2, 2].copy()).float()
    kept = tuple(_to_photo(person, scale, shift) for person in people)
    return PhotoPeople(photo, kept, K, source or "given", assumed_height=model.assumed_height)


def _predict_fitted(
    model: FittedHumanModel,
    photo: Photo,
    K: np.ndarray | None,
    source: CameraSource | None,
    min_score: float,
    heights: Sequence[float] | None,
    straight: StraightPhoto | None,
) -> PhotoPeople:
    if K is None:
        ((K, source),) = ((one.K, one.source) for one in resolve_cameras([photo], None, None))
    joints = model.find_in_photo(photo.rgb, min_score)
    people = tuple(model.fit(joints, K, (photo.width, photo.height), heights, straight))
    return PhotoPeople(photo, people, K, source or "given", assumed_height=assumed_height(heights))


def select(people: PhotoPeople, selection: str) -> PhotoPeople:
    """The people of `selection`: "all", "largest", or a number N for the N largest by the area of their boxes.

    Areas are those inside the photo. The order stays. UserError for other texts.
    """
    if selection == "all":
        return people
    count = parse_selection(selection)
    corner = torch.tensor([people.photo.width - 0.5, people.photo.height - 0.5])
    areas = [_area(person.bbox_xyxy, corner) for person in people.people]
    indices = sorted(sorted(range(len(areas)), key=lambda k: -areas[k])[:count])
    track_ids = None if people.track_ids is None else tuple(people.track_ids[k] for k in indices)
    return replace(people, people=tuple(people.people[k] for k in indices), track_ids=track_ids)


def parse_selection(selection: str) -> int | None:
    """The number of largest people to keep; None for all. UserError for other texts."""
    if selection == "all":
        return None
    if selection == "largest":
        return 1
    if selection.isascii() and selection.isdecimal() and int(selection) > 0:
        return int(selection)
    raise UserError(f"--select {selection!r} is not known; allowed: all, largest, or a number of people such as 2")


def _area(box: torch.Tensor, corner: torch.Tensor) -> float:
    return float((torch.minimum(box[2:], corner) - box[:2].clamp_min(-0.5)).clamp_min(0).prod())


def _to_photo(person: Person, scale: torch.Tensor, shift: torch.Tensor) -> Person:
    """The person on the CPU, with pixels times `scale` (2,) plus `shift` (2,)."""
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


def through_lens(person: Person, lens: Camera, surface: torch.Tensor) -> Person:
    """The person, in metres in the frame of a photo's camera, with the pixels that its lens gives. surface: the
    vertices of the body that can be seen. NaN for joints that the lens does not see."""

    def pixels(points: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(lens.project(points.double().numpy())).float()

    head_px = pixels(person.head)
    box = torch.cat([pixels(person.vertices[surface.cpu()]), head_px[None]])
    box = box[box.isfinite().all(-1)]
    bbox = torch.cat([box.amin(0), box.amax(0)]) if len(box) else torch.full((4,), torch.nan)
    return replace(person, bbox_xyxy=bbox, head_px=head_px, joints2d=pixels(person.joints3d))


# --- videos ---


def predict_frames(
    model: HumanModel | FittedHumanModel,
    frames: Iterable[tuple[Frame, Photo]],
    camera: PhotoCamera | None = None,
    min_score: float = MIN_SCORE,
    tracking: PersonTrackerConfig | None = None,
    run: Run | None = None,
    height: float | None = None,
) -> Iterator[tuple[Frame, PhotoPeople]]:
    """The people of each frame of a video, given with its photo; `track_ids` follow each person (tracking.py).

    All frames share one camera. Where it is None, the first frame with people gives the predicted one. height: of
    everybody, standing, in metres, for fitted bodies.
    """
    run, tracker = run or Run(), PersonTracker(tracking)
    for frame, photo in frames:
        with run.stage("predict"):
            people = predict(model, photo, camera, min_score, None if height is None else (height,))
            heads = np.array([person.head.numpy() for person in people.people], np.float64).reshape(-1, 3)
            track_ids = tuple(tracker.update(frame.time_s, heads))
        if camera is None and people.people:
            camera = PhotoCamera.of_matrix(people.K, people.camera_source, photo.width, photo.height)
        yield frame, replace(people, track_ids=track_ids)


class TrackSummary:
    """The frames of each person of a video."""

    def __init__(self) -> None:
        self._frames: dict[int, list[int]] = {}  # indices of the person's frames

    def add(self, frame: Frame, people: PhotoPeople) -> None:
        """Adds one frame's people."""
        for track_id in people.ids:
            self._frames.setdefault(track_id, []).append(frame.index)

    def as_json(self) -> list[dict[str, Any]]:
        """For the JSON: each person's id, first and last frame, and number of frames."""
        return [
            {"id": track_id, "first_frame": frames[0], "last_frame": frames[-1], "frames": len(frames)}
            for track_id, frames in sorted(self._frames.items())
        ]
