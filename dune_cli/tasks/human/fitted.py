"""People without Multi-HMR: open networks find their joints, and Anny is fitted to these (docs/models/people.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.body import BodyOutput
from dune_cli.bodies.fit_targets import ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M, FitTargets
from dune_cli.bodies.fitting import FittedBodies, fit_anny, shape_of_stature
from dune_cli.bodies.skeleton import INDEX, LANDMARKS, AnnySkeleton
from dune_cli.errors import UserError
from dune_cli.geometry.cameras import K_from_fov
from dune_cli.io.intrinsics import DEFAULT_FOV_DEG
from dune_cli.io.preprocess import fit as reduce_to
from dune_cli.models.multihmr_common import MIN_SCORE, to_rotvec
from dune_cli.models.people_poses import (
    BLAZEPOSE_NAMES,
    MIN_JOINT,
    NEAREST_JOINT,
    PeopleNetwork,
    PeopleSearch,
    Poses,
)
from dune_cli.provenance import Source
from dune_cli.tasks.human.model import Person, project_box, project_points

GIVEN_SD_M = 0.005  # of a height that is given
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
# of a score, so that MIN_SCORE is 0.2 before the power: on 130 photos of animals it left three wrong ones
SCORE_POWER = 0.75
# the logistic curve of the fit's confidence over its cost, of people with all joints in the photo
COST_HALF, COST_SPREAD = 50.0, 8.0
_OF_BODY = np.array([BLAZEPOSE_NAMES.index(name) for name in LANDMARKS if name in BLAZEPOSE_NAMES])
_TO_BODY = np.array([INDEX[BLAZEPOSE_NAMES[number]] for number in _OF_BODY])


@dataclass(frozen=True)
class AssumedHeight:
    """Standing height of adults in metres, from which distances follow, and its deviation. given: by the user."""

    mean: float
    sd: float
    given: bool = False


@dataclass(frozen=True)
class FittedPerson(Person):
    """A person whose body was fitted to joints.

    landmarks2d (M, 2): the body's LANDMARKS in pixels, where the fit compares them. joint_confidence: of each joint
    found, in [0, 1]. joints_seen: those found in the photo with at least SEEN.
    fit_residual_px: mean distance of the body's joints from those seen; None where these are not pixels.
    fit_confidence: in [0, 1], how likely the body fits; below a half many do not. height: standing, metres.
    """

    landmarks2d: np.ndarray
    joint_confidence: dict[str, float]
    joints_seen: tuple[str, ...]
    fit_residual_px: float | None
    fit_confidence: float
    height: float


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


class BodyFitter(nn.Module):
    """Anny with the skeletons that are fitted: at BlazePose's landmarks, and at the body's own joints."""

    def __init__(self, body: Anny) -> None:
        super().__init__()
        self.body = body
        self.landmark_skeleton = AnnySkeleton(body, shifted=True)
        self.joint_skeleton = AnnySkeleton(body, shifted=False)

    @property
    def vertex_count(self) -> int:
        """V, the vertices of one body."""
        return len(self.body.weights)

    @property
    def rotation_names(self) -> tuple[str, ...]:
        """The joints of a person's `rotvec`, in its order."""
        return self.body.joint_names

    def pose(self, rotations: torch.Tensor, shape: torch.Tensor, expression: torch.Tensor | None = None) -> BodyOutput:
        """The body posed by rotations (P, J, 3, 3), the root at its origin. A person's vertices are these plus
        `offset`."""
        return self.body(rotations, shape, expression)

    def statures(self, heights: Sequence[float] | None, people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (P,), deviation (P,) and starting shapes (P, 6) of standing heights in metres: those given, one for all
        or one a person, or the assumed ones of adults. UserError for another number of heights."""
        if heights is None:
            means = np.full(people, ASSUMED_STATURE_M)
        elif len(heights) in (1, people):
            means = np.broadcast_to(np.array(heights, np.float64), (people,)).copy()
        else:
            raise UserError(
                f"{len(heights)} heights were given, and {people} people are in the photo; give one for all, or one "
                "a person from left to right"
            )
        deviation = ASSUMED_STATURE_SD_M if heights is None else GIVEN_SD_M
        return means, np.full(people, deviation), shape_of_stature(self.joint_skeleton, means)

    def people(
        self, bodies: FittedBodies, K: np.ndarray, scores: np.ndarray, details: Sequence[dict[str, object]]
    ) -> list[FittedPerson]:
        """The fitted bodies with their surface. details: what else a FittedPerson says."""
        if not len(bodies):
            return []
        with torch.inference_mode():
            rotations, shape = torch.from_numpy(bodies.rotations).float(), torch.from_numpy(bodies.shape).float()
            posed = self.body(rotations, shape)
            offset = torch.from_numpy(bodies.translation).float()
            camera = torch.from_numpy(K).float()
            vertices, joints = posed.vertices + offset[:, None], posed.joints + offset[:, None]
            rotvec = to_rotvec(rotations)
            found = []
            for k in range(len(bodies)):
                head = joints[k, self.body.head]
                head_px = project_points(head[None], camera)[0]
                found.append(
                    FittedPerson(
                        score=float(scores[k]),
                        bbox_xyxy=project_box(vertices[k, self.body.surface], camera, head_px),
                        head_px=head_px,
                        translation=joints[k, 0],
                        head=head,
                        offset=offset[k],
                        rotvec=rotvec[k],
                        shape=dict(zip(self.body.shape_names, shape[k])),
                        expression=None,
                        joints3d=joints[k],
                        joints2d=project_points(joints[k], camera),
                        vertices=vertices[k],
                        height=float(bodies.stature[k]),
                        landmarks2d=bodies.landmarks_px[k],
                        **details[k],
                    )
                )
        return found


class FittedHumanModel(nn.Module):
    """The networks that find people with the body that is fitted to them. Runs without gradients."""

    def __init__(self, network: PeopleNetwork, fitter: BodyFitter) -> None:
        super().__init__()
        self.network, self.fitter = network, fitter

    @property
    def body(self) -> Anny:
        """The body of the people, of the rig "light"."""
        return self.fitter.body

    @property
    def source(self) -> Source:
        """The source of the networks' weights."""
        return self.network.source

    @property
    def vertex_count(self) -> int:
        """V, the vertices of one body."""
        return self.fitter.vertex_count

    @property
    def rotation_names(self) -> tuple[str, ...]:
        """The joints of a person's `rotvec`, in its order."""
        return self.fitter.rotation_names

    def pose(self, rotations: torch.Tensor, shape: torch.Tensor, expression: torch.Tensor | None = None) -> BodyOutput:
        """See `BodyFitter.pose`."""
        return self.fitter.pose(rotations, shape, expression)

    @torch.inference_mode()
    def forward(
        self, images: torch.Tensor, K: torch.Tensor | None = None, min_score: float = MIN_SCORE
    ) -> list[list[FittedPerson]]:
        """The people of each image, from left to right.

        images: (B, 3, H, W) RGB in [0, 1], of any size. K: (B, 3, 3); None: 55 degrees across the long side. Pixels in
        K and in the results have their centres at integers, other than those of Multi-HMR's models.
        """
        found = []
        for number, image in enumerate(images):
            height, width = image.shape[-2:]
            camera = K_from_fov(DEFAULT_FOV_DEG, width, height) if K is None else K[number].double().cpu().numpy()
            joints = self.find(image.to(next(self.network.buffers()).device), np.eye(3), min_score)
            found.append(self.fit(joints, camera, (width, height)))
        return found

    def find_in_photo(
        self, rgb: np.ndarray, min_score: float = MIN_SCORE, search: PeopleSearch | None = None
    ) -> FoundJoints:
        """Joints in a photo (H, W, 3) uint8, from left to right, of people with at least `min_score`."""
        reduced = reduce_to(rgb, LARGEST_PHOTO_PX)
        image = torch.from_numpy(reduced.image).to(next(self.network.buffers()).device)
        return self.find(image, np.linalg.inv(reduced.network_from_image), min_score, search)

    @torch.inference_mode()
    def find(
        self,
        image: torch.Tensor,
        photo_from_image: np.ndarray,
        min_score: float = MIN_SCORE,
        search: PeopleSearch | None = None,
    ) -> FoundJoints:
        """The same for an image (3, H, W) of the photo, and the (3, 3) that takes its pixels to the photo's."""
        poses = self.network(image, search)
        joints = _joints_of(poses, (image.shape[2], image.shape[1]), photo_from_image)
        joints = joints[joints.scores >= min_score]
        middle = joints.pixels[:, [BLAZEPOSE_NAMES.index(f"{side}_shoulder") for side in ("left", "right")], 0].mean(1)
        return joints[np.argsort(middle, kind="stable")]

    def fit(
        self, joints: FoundJoints, K: np.ndarray, size: tuple[int, int], heights: Sequence[float] | None = None
    ) -> list[FittedPerson]:
        """Bodies fitted to the joints, in their order. size: (width, height) of the photo in pixels. heights: standing,
        in metres, one for all or one a person; None: assumed."""
        if not len(joints):
            return []
        stature, deviation, shape = self.fitter.statures(heights, len(joints))
        targets = landmark_targets(joints, K, stature, deviation)
        bodies = fit_anny(self.fitter.landmark_skeleton, targets, shape=shape)
        inside = ((joints.pixels > -0.5) & (joints.pixels < np.array(size) - 0.5)).all(-1)
        details = []
        for k in range(len(joints)):
            seen = (joints.confidence[k] >= SEEN) & inside[k]
            apart = np.linalg.norm(bodies.landmarks_px[k, _TO_BODY] - joints.pixels[k, _OF_BODY], axis=-1)
            counted = seen[_OF_BODY] if seen[_OF_BODY].any() else np.ones(len(apart), bool)
            confidence = joints.confidence[k] * inside[k]
            details.append(
                {
                    "joint_confidence": dict(zip(BLAZEPOSE_NAMES, map(float, confidence))),
                    "joints_seen": tuple(name for name, one in zip(BLAZEPOSE_NAMES, seen) if one),
                    "fit_residual_px": float(apart[counted].mean()),
                    "fit_confidence": fit_confidence(float(bodies.cost[k]), float(joints.agreement[k])),
                }
            )
        return self.fitter.people(bodies, K, joints.scores, details)


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
    visibility = joints.visibility[:, _OF_BODY]
    shares = np.array([PIXEL_SHARES.get(LANDMARKS[number], 1.0) for number in _TO_BODY])
    pixels[:, _TO_BODY], points[:, _TO_BODY] = joints.pixels[:, _OF_BODY], joints.world[:, _OF_BODY]
    pixel_weights[:, _TO_BODY] = np.where(visibility < MIN_VISIBILITY, 0, visibility) * shares
    point_weights[:, _TO_BODY] = np.maximum(visibility, 1e-3)  # what is not seen still has a plausible direction
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


def assumed_height(heights: Sequence[float] | None) -> AssumedHeight:
    """What the JSON says of the people's size."""
    if heights is None:
        return AssumedHeight(ASSUMED_STATURE_M, ASSUMED_STATURE_SD_M)
    return AssumedHeight(float(np.mean(heights)), 0.0, given=True)
