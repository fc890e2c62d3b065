"""Joints of people from files: COCO keypoints and OpenPose JSON in pixels, named 3-D joints in metres.

    COCO       {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"keypoints": ["nose", …]}],
                "annotations": [{"image_id": 1, "keypoints": [x, y, v, …]}]}
    OpenPose   {"people": [{"pose_keypoints_2d": [x, y, confidence, …]}]}, 18 or 25 joints a person
    3-D        {"joints": ["left_shoulder", …], "people": [{"xyz": [[x, y, z], null, …]}], "axes": "opencv" or "y-up"}

Sources: the COCO data format (cocodataset.org/#format-data), OpenPose's output format (doc/02_output.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.json_files import Fields, finite_array
from dune_cli.io.safe_read import MIB, parse_json, quoted, read_text

LIMIT_BYTES = 256 * MIB
LARGEST_PX, LARGEST_M = 1e6, 1e4
LARGEST_PERSON_M, SMALLEST_PERSON_M, FEW = 5.0, 0.02, 4  # extent of a person's joints, and of how many at least
MOST_PEOPLE = 10_000  # of one photo
COCO_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
_ARMS_AND_LEGS = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip
_LEGS = ("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle")
_FACE = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = ("left_foot_index", "left_small_toe", "left_heel", "right_foot_index", "right_small_toe", "right_heel")
OPENPOSE_NAMES = {
    18: (*_ARMS_AND_LEGS, *_LEGS, *_FACE),
    25: (*_ARMS_AND_LEGS, "mid_hip", *_LEGS, *_FACE, *_FEET),
}
# COCO's visibility: not labelled, hidden, seen
_CONFIDENCE = {0: 0.0, 1: 0.7, 2: 1.0}
# other words for a joint, without its side
_SYNONYMS = {
    **dict.fromkeys(("toe", "toes", "big_toe", "toe_base", "foot_tip", "hallux"), "foot_index"),
    **dict.fromkeys(("arm", "upper_arm"), "shoulder"),
    **dict.fromkeys(("fore_arm", "lower_arm"), "elbow"),
    **dict.fromkeys(("up_leg", "thigh", "upper_leg"), "hip"),
    **dict.fromkeys(("shin", "calf", "lower_leg"), "knee"),
    **dict.fromkeys(("head_end", "top_of_head", "headtop", "vertex"), "head_top"),
}


@dataclass(frozen=True)
class JointSet:
    """Joints of P people: names (J), values (P, J, 2) px or (P, J, 3) metres in the camera's axes, confidence (P, J) in
    [0, 1], 0 for what is not known."""

    names: tuple[str, ...]
    values: np.ndarray
    confidence: np.ndarray

    @property
    def metric(self) -> bool:
        """Whether these are positions in metres, not pixels."""
        return self.values.shape[-1] == 3


@dataclass(frozen=True)
class JointFile:
    """The joints in a file, by photo name; under None those of a file that names no photos."""

    path: Path
    by_photo: dict[str | None, JointSet]

    def of(self, photo: Path, photos: int) -> JointSet:
        """The joints of one of `photos` photos. UserError for a photo that the file does not know."""
        if None in self.by_photo:
            if photos > 1:
                raise UserError(f"{self.path} holds the joints of one photo, and {photos} were given; give one")
            return self.by_photo[None]
        found = self.by_photo.get(photo.name)
        if found is None:
            known = ", ".join(str(name) for name in list(self.by_photo)[:3]) or "none"
            more = ", ..." if len(self.by_photo) > 3 else ""
            raise UserError(f"{self.path} has no joints of {photo.name}; its photos: {known}{more}")
        return found


def read_joint_file(path: str | Path) -> JointFile:
    """The joints in a file of one of the layouts above. UserError for others and for damaged ones."""
    path = Path(path).expanduser()
    content = parse_json(read_text(path, "joints", LIMIT_BYTES), str(path))
    if isinstance(content, list):
        content = {"annotations": content}
    fields = Fields(content, str(path))
    if "annotations" in fields:
        return JointFile(path, _coco(fields))
    if "joints" in fields:
        return JointFile(path, {None: _named(fields)})
    if "people" in fields:
        return JointFile(path, {None: _openpose(fields)})
    raise UserError(
        f"{path} is no file of joints; allowed: COCO keypoints ('annotations'), OpenPose ('people' with "
        "'pose_keypoints_2d'), or 3-D joints in metres ('joints' and 'people' with 'xyz')"
    )


def canonical_name(name: str) -> str:
    """A joint's name as `left_shoulder`: the side first, words of one meaning alike."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[LR])(?=[A-Z][a-z])", "_", name.strip())
    parts = [part for part in re.split(r"[^a-z0-9]+", words.lower()) if part]
    sides = {"left": "left", "l": "left", "right": "right", "r": "right"}
    side = next((sides[part] for part in parts if part in sides), "")
    rest = "_".join(part for part in parts if part not in sides)
    rest = _SYNONYMS.get(rest, rest)
    return f"{side}_{rest}" if side else rest


def _coco(fields: Fields) -> dict[str | None, JointSet]:
    names: Sequence[str] = COCO_NAMES
    for category in fields.objects("categories", []):
        listed = category.items_of("keypoints", [])
        if listed:
            names = [canonical_name(_text(name, category.where)) for name in listed]
            break
    files = {
        image.integer("id"): re.split(r"[\\/]", image.text("file_name"))[-1] for image in fields.objects("images", [])
    }
    by_image: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {number: [] for number in files}
    for annotation in fields.objects("annotations"):
        number = annotation.integer("image_id")
        if files and number not in files:
            raise UserError(f"{annotation.where} has the image_id {number}, which is not among the images")
        if annotation.items_of("keypoints", None) is None:
            continue  # an object without keypoints
        by_image.setdefault(number, []).append(_triples(annotation, "keypoints", len(names), coco=True))
    if not files and len(by_image) > 1:
        raise UserError(f"{fields.where} names no images, and has joints of {len(by_image)}; add 'images'")
    return {files.get(number): _set(names, people, 2) for number, people in by_image.items()} or {
        None: _set(names, [], 2)
    }


def _openpose(fields: Fields) -> JointSet:
    people, count = [], 25
    for person in fields.objects("people"):
        numbers = person.items_of("pose_keypoints_2d")
        count = len(numbers) // 3
        if count not in OPENPOSE_NAMES or len(numbers) != 3 * count:
            raise UserError(
                f"{person.where}: pose_keypoints_2d has {len(numbers)} numbers; allowed: 54 (18 joints) or 75 (25)"
            )
        people.append((count, _triples(person, "pose_keypoints_2d", count, coco=False)))
    if len({size for size, _ in people}) > 1:
        raise UserError(f"{fields.where} has people of 18 and of 25 joints; give a file of one kind")
    return _set(OPENPOSE_NAMES[count], [person for _, person in people], 2)


def _named(fields: Fields) -> JointSet:
    names = [canonical_name(_text(name, fields.where)) for name in fields.items_of("joints")]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{fields.where}: joints must be different names, at least one")
    axes = fields.text("axes", "opencv").lower()
    if axes not in ("opencv", "y-up"):
        raise UserError(f"{fields.where}: axes is {quoted(axes)}; allowed: opencv (y down, z forward), y-up (z back)")
    people = []
    for person in fields.objects("people"):
        rows = person.items_of("xyz")
        if len(rows) != len(names):
            raise UserError(f"{person.where}: xyz has {len(rows)} joints, and the file names {len(names)}")
        known = np.array([row is not None for row in rows])
        filled = [[0.0, 0.0, 0.0] if row is None else row for row in rows]
        places = finite_array(filled, (len(names), 3), f"{person.where}: xyz")
        if np.abs(places).max() > LARGEST_M:
            raise UserError(f"{person.where}: xyz reaches {np.abs(places).max():g} m; give metres up to {LARGEST_M:g}")
        extent = float(np.ptp(places[known], axis=0).max()) if known.any() else 0.0
        if extent > LARGEST_PERSON_M or (known.sum() >= FEW and extent < SMALLEST_PERSON_M):
            raise UserError(
                f"{person.where}: xyz extends over {extent:g} m, which is no person; give metres (millimetres / 1000)"
            )
        people.append((places * ([1, -1, -1] if axes == "y-up" else [1, 1, 1]), known.astype(np.float64)))
    return _set(names, people, 3)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: a joint's name is not a text; give names such as left_shoulder")
    return value


def _triples(person: Fields, name: str, count: int, coco: bool) -> tuple[np.ndarray, np.ndarray]:
    """x, y and visibility or confidence of each joint: (J, 2) px, confidence (J,)."""
    numbers = person.array(name, (None,))
    if len(numbers) != 3 * count:
        raise UserError(f"{person.where}: {name} has {len(numbers)} numbers; {count} joints need {3 * count}")
    table = numbers.reshape(-1, 3)
    if coco:
        if not np.isin(table[:, 2], list(_CONFIDENCE)).all() and not ((table[:, 2] >= 0) & (table[:, 2] <= 1)).all():
            raise UserError(f"{person.where}: {name} has a visibility other than 0, 1 and 2, or 0 to 1")
        whole = np.isin(table[:, 2], list(_CONFIDENCE)).all()
        confidence = np.array([_CONFIDENCE[int(v)] for v in table[:, 2]]) if whole else table[:, 2]
    else:
        confidence = np.clip(table[:, 2], 0, 1)
    places = np.where(confidence[:, None] > 0, table[:, :2], 0)
    if len(places) and np.abs(places).max() > LARGEST_PX:
        raise UserError(f"{person.where}: {name} reaches {np.abs(places).max():g} px; give pixels of the photo")
    return places, confidence


def _set(names: Sequence[str], people: Sequence[tuple[np.ndarray, np.ndarray]], axes: int) -> JointSet:
    if len(people) > MOST_PEOPLE:
        raise UserError(f"{len(people)} people of one photo are too many; at most {MOST_PEOPLE} are read")
    values = np.array([places for places, _ in people]).reshape(len(people), len(names), axes)
    return JointSet(tuple(names), values, np.array([c for _, c in people]).reshape(len(people), len(names)))
