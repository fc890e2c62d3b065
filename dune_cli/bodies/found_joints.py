"""The joints of people that the open networks find in photos, and what Anny is fitted to of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from dune_cli.bodies.fit_targets import FitTargets
from dune_cli.bodies.skeleton import INDEX, LANDMARKS
from dune_cli.io.preprocess import fit as reduce_to
from dune_cli.models.multihmr_common import MIN_SCORE
from dune_cli.models.people_poses import (
    BLAZEPOSE_NAMES,
    MIN_JOINT,
    NEAREST_JOINT,
    PeopleNetwork,
    PeopleSearch,
    Poses,
)

LARGEST_PHOTO_PX = 2048  # long side of what the networks see; larger photos are reduced
MIN_VISIBILITY = 0.05  # of a landmark that the fit uses
SEEN = 0.5  # confidence from which a joint counts as seen
# what a landmark's position in the photo counts for; 1 where nothing is said
PIXEL_SHARES = {
    **dict.fromkeys(("nose", "left_eye", "right_eye"), 0.7),
    **dict.fromkeys(("left_ear", "right_ear", "left_heel", "right_heel", "left_foot_index", "right_foot_index"), 0.5),
    **dict.fromkeys(("left_pinky", "right_pinky", "left_index", "right_index"), 0.3),
    **dict.fromkeys(("left_thumb", "right_thumb"), 0.2),
    **dict.fromkeys(("left_hip", "right_hip"), 0.6),
}
TURNED_MARGIN = 0.1  # of the score of who is found in a turned image only: hands of a clock had 0.34
# of a score, so that MIN_SCORE is 0.2 before the power: on 130 photos of animals it left three wrong ones
SCORE_POWER = 0.75
# the logistic curve of the fit's confidence over its cost, of people with all joints in the photo
COST_HALF, COST_SPREAD = 50.0, 8.0
OF_BODY = np.array([BLAZEPOSE_NAMES.index(name) for name in LANDMARKS if name in BLAZEPOSE_NAMES])
TO_BODY = np.array([INDEX[BLAZEPOSE_NAMES[number]] for number in OF_BODY])


@dataclass(frozen=True)
class FoundJoints:
    """Joints of P people, by BLAZEPOSE_NAMES: scores (P,), agreement (P,) of the two networks, pixels (P, 33, 2) of the
    photo, confidence and visibility (P, 33) in [0, 1], world (P, 33, 3) in metres about the hips, in the camera's axes.
    """

    scores: np.ndarray
    agreement: np.ndarray
    pixels: np.ndarray
    confidence: np.ndarray
    visibility: np.ndarray
    world: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: np.ndarray) -> FoundJoints:
        """Some of the people."""
        return FoundJoints(**{name: value[chosen] for name, value in vars(self).items()})


def find_in_photo(
    network: PeopleNetwork, rgb: np.ndarray, min_score: float = MIN_SCORE, search: PeopleSearch | None = None
) -> FoundJoints:
    """Joints in a photo (H, W, 3) uint8, from left to right, of people with at least `min_score`."""
    reduced = reduce_to(rgb, LARGEST_PHOTO_PX)
    image = torch.from_numpy(reduced.image).to(next(network.buffers()).device)
    return find_joints(network, image, np.linalg.inv(reduced.network_from_image), min_score, search)


@torch.inference_mode()
def find_joints(
    network: PeopleNetwork,
    image: torch.Tensor,
    photo_from_image: np.ndarray,
    min_score: float = MIN_SCORE,
    search: PeopleSearch | None = None,
) -> FoundJoints:
    """The same for an image (3, H, W) of the photo, and the (3, 3) that takes its pixels to the photo's.

    Where nobody is found, the networks look at the image on its sides and upside down; who is found so needs
    TURNED_MARGIN more.
    """
    size = image.shape[2], image.shape[1]
    joints = _joints_of(network(image, search), size, photo_from_image)
    joints = joints[joints.scores >= min_score]
    if not len(joints):
        search = search or PeopleSearch()
        turned = replace(search, looks=search.looks[:1], turns=(1, 2, 3))
        joints = _joints_of(network(image, turned), size, photo_from_image)
        joints = joints[joints.scores >= min_score + TURNED_MARGIN]
    middle = joints.pixels[:, [BLAZEPOSE_NAMES.index(f"{side}_shoulder") for side in ("left", "right")], 0].mean(1)
    return joints[np.argsort(middle, kind="stable")]


def fit_confidence(cost: float, agreement: float) -> float:
    """In [0, 1], from the fit's cost and the networks' agreement."""
    return float(agreement / (1 + np.exp(np.clip((cost - COST_HALF) / COST_SPREAD, -50, 50))))


def landmark_targets(joints: FoundJoints, K: np.ndarray, stature: np.ndarray, deviation: np.ndarray) -> FitTargets:
    """What the body is fitted to: positions in the photo by visibility, and the directions of the landmarks in metres.

    The networks' own agreement does not weight them: BlazePose's visibility says what it saw.
    """
    people = len(joints)
    pixels, points = np.zeros((people, len(LANDMARKS), 2)), np.zeros((people, len(LANDMARKS), 3))
    pixel_weights, point_weights = np.zeros((people, len(LANDMARKS))), np.zeros((people, len(LANDMARKS)))
    visibility = joints.visibility[:, OF_BODY]
    shares = np.array([PIXEL_SHARES.get(LANDMARKS[number], 1.0) for number in TO_BODY])
    pixels[:, TO_BODY], points[:, TO_BODY] = joints.pixels[:, OF_BODY], joints.world[:, OF_BODY]
    pixel_weights[:, TO_BODY] = np.where(visibility < MIN_VISIBILITY, 0, visibility) * shares
    point_weights[:, TO_BODY] = np.maximum(visibility, 1e-3)  # what is not seen still has a plausible direction
    return FitTargets(stature, deviation, K, pixels, pixel_weights, points, point_weights)


def _joints_of(poses: Poses, size: tuple[int, int], photo_from_image: np.ndarray) -> FoundJoints:
    """size: (width, height) of the image of the poses in pixels.

    The score is how sure both networks are of the joints: (the mean confidence of the landmarks inside the image times
    MoveNet's mean score of the joints that it sees)^SCORE_POWER.
    """
    values = {name: value.double().cpu().numpy() for name, value in vars(poses).items() if value is not None}
    seen = values["joint_scores"] > MIN_JOINT
    detected = np.maximum(seen.sum(1), 1)
    confidence = values["visibility"] * values["agreement"][:, NEAREST_JOINT]
    inside = ((values["landmarks"] > -0.5) & (values["landmarks"] < np.array(size) - 0.5)).all(-1)
    mean = (confidence * inside).sum(1) / np.maximum(inside.sum(1), 1)
    scale, shift = photo_from_image.diagonal()[:2], photo_from_image[:2, 2]
    return FoundJoints(
        (mean * (values["joint_scores"] * seen).sum(1) / detected) ** SCORE_POWER,
        values["agreement"].sum(1) / detected,
        values["landmarks"] * scale + shift,
        confidence,
        values["visibility"],
        values["world"],
    )
