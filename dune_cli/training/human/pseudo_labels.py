"""People in photos as the bundled path of `dune human` sees them: the labels of photos, kept between runs.

A person is trusted where both networks agree and the body fits (docs/models/people-head.md gives the thresholds).
Everybody else who is found, with however low a score, is known to be doubtful.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from dune_cli import console
from dune_cli.bodies.anny import Anny
from dune_cli.bodies.fitting import FittedBodies, fit_anny
from dune_cli.bodies.found_joints import FoundJoints, find_in_photo, fit_confidence, landmark_targets
from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.bodies.statures import standing_heights
from dune_cli.checkpoints.loader import load_human_network
from dune_cli.errors import DuneError
from dune_cli.geometry.cameras import K_from_focal, K_from_fov
from dune_cli.io.cache import read_cached, write_cached
from dune_cli.io.photos import Photo, read_photo
from dune_cli.models.people_head import FOV_DEG
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.provenance import Source
from dune_cli.training.human.people import LabelledPeople, nobody, weights_of

TEACHER = "dune-people"
SCHEMA = "dune.people-labels/1"
DOUBTFUL_SCORE = 0.05  # from which a person found is not background
# of people who are trusted: score, agreement of the networks, confidence and residual (in body sizes) of the fit
MIN_SCORE, MIN_AGREEMENT, MIN_FIT, MOST_RESIDUAL = 0.4, 0.7, 0.6, 0.12
SEEN = 0.5
CENTRE_TO_CORNER = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])


class BundledPeopleTeacher:
    """The networks that come with dune and the body fitted to what they find."""

    def __init__(self, device: str) -> None:
        self.network = load_human_network(TEACHER, device)
        self.body: Anny = load_anny("light")
        self.skeleton = AnnySkeleton(self.body, shifted=True)
        self.own_skeleton = AnnySkeleton(self.body, shifted=False)

    @property
    def sources(self) -> list[Source]:
        """The networks' weights and the body."""
        return [self.network.source, self.body.source]

    def label(self, photo: Photo) -> LabelledPeople:
        """The people in a photo; its camera is that of its EXIF, or has a field of view of 55 degrees."""
        size = photo.width, photo.height
        K = K_from_fov(FOV_DEG, *size) if photo.exif_focal_px is None else K_from_focal(photo.exif_focal_px, *size)
        joints = find_in_photo(self.network, photo.rgb, DOUBTFUL_SCORE)
        if not len(joints):
            return nobody(CENTRE_TO_CORNER @ K)
        stature, deviation, shape = standing_heights(self.own_skeleton, None, len(joints))
        targets = landmark_targets(joints, K, stature, deviation)
        bodies = fit_anny(self.skeleton, targets, shape=shape)
        return self._labelled(joints, bodies, K, targets.size_px(), size)

    def _labelled(
        self, joints: FoundJoints, bodies: FittedBodies, K: np.ndarray, size_px: np.ndarray, size: tuple[int, int]
    ) -> LabelledPeople:
        inside = ((joints.pixels > -0.5) & (joints.pixels < np.array(size) - 0.5)).all(-1)
        confidence = joints.confidence * inside
        seen = confidence >= SEEN
        residual = residual_of(self.skeleton, bodies, joints, seen) / size_px
        fit = np.array([fit_confidence(*pair) for pair in zip(bodies.cost, joints.agreement)])
        trusted = (joints.scores >= MIN_SCORE) & (joints.agreement >= MIN_AGREEMENT) & (fit >= MIN_FIT)
        turn, place = weights_of(dict(zip(BLAZEPOSE_NAMES, confidence.T)))
        with torch.inference_mode():
            rotations, shape = torch.from_numpy(bodies.rotations).float(), torch.from_numpy(bodies.shape).float()
            placed = self.body.posed_joints(rotations, shape).double().numpy() + bodies.translation[:, None]
        pixels = np.concatenate([bodies.landmarks_px, joints.pixels], 1) + 0.5
        return LabelledPeople(
            K=(CENTRE_TO_CORNER @ K).astype(np.float32),
            rotations=bodies.rotations[:, self.skeleton.free].astype(np.float32),
            shape=bodies.shape.astype(np.float32),
            head=placed[:, self.body.head].astype(np.float32),
            turn_weights=turn,
            place_weights=place,
            boxes=np.concatenate([pixels.min(1), pixels.max(1)], 1).astype(np.float32),
            trusted=trusted & (residual <= MOST_RESIDUAL),
        )


def residual_of(skeleton: AnnySkeleton, bodies: FittedBodies, joints: FoundJoints, seen: np.ndarray) -> np.ndarray:
    """(P,) px: mean distance of the fitted landmarks from those seen (P, 33) in the photo; infinite without any."""
    from dune_cli.bodies.found_joints import OF_BODY, TO_BODY

    apart = np.linalg.norm(bodies.landmarks_px[:, TO_BODY] - joints.pixels[:, OF_BODY], axis=-1)
    counted = seen[:, OF_BODY]
    return np.where(counted.any(1), (apart * counted).sum(1) / np.maximum(counted.sum(1), 1), np.inf)


class LabelFolder:
    """Labels of photos in a folder, computed where they are missing."""

    def __init__(self, folder: Path, teacher: BundledPeopleTeacher) -> None:
        self.folder, self.teacher = folder, teacher
        self._made_of = ", ".join(str(source.sha256) for source in teacher.sources)

    def read(self, path: Path) -> LabelledPeople | None:
        """The people in a photo; None where it cannot be read, which a note tells."""
        name = hashlib.sha256(f"{path}\0{path.stat().st_size}".encode(errors="surrogateescape")).hexdigest()[:24]
        file = self.folder / f"{name}.safetensors"
        arrays = read_cached(file, SCHEMA, self._made_of)
        if arrays is None:
            try:
                people = self.teacher.label(read_photo(path))
            except DuneError as error:
                console.note(f"left out: {error}")
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            write_cached(file, SCHEMA, self._made_of, {"K": people.K, **people.by_person()})
            return people
        return LabelledPeople(**arrays)
