"""People without Multi-HMR: open networks find their joints, and Anny is fitted to these (docs/models/people.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.body import BodyOutput
from dune_cli.bodies.fitting import FittedBodies, fit_anny
from dune_cli.bodies.found_joints import (
    OF_BODY,
    SEEN,
    TO_BODY,
    FoundJoints,
    find_in_photo,
    find_joints,
    fit_confidence,
    landmark_targets,
)
from dune_cli.bodies.skeleton import AnnySkeleton
from dune_cli.bodies.statures import standing_heights
from dune_cli.geometry.cameras import K_from_fov
from dune_cli.io.intrinsics import DEFAULT_FOV_DEG
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.models.multihmr_common import MIN_SCORE, to_rotvec
from dune_cli.models.people_poses import BLAZEPOSE_NAMES, PeopleNetwork, PeopleSearch
from dune_cli.provenance import Source
from dune_cli.tasks.human.model import Person, project_box, project_points


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
        return standing_heights(self.joint_skeleton, heights, people)

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
    def sources(self) -> list[Source]:
        """All weights behind a result: the networks' and the body's."""
        return [self.source, self.body.source]

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
        return find_in_photo(self.network, rgb, min_score, search)

    def find(
        self,
        image: torch.Tensor,
        photo_from_image: np.ndarray,
        min_score: float = MIN_SCORE,
        search: PeopleSearch | None = None,
    ) -> FoundJoints:
        """The same for an image (3, H, W) of the photo, and the (3, 3) that takes its pixels to the photo's."""
        return find_joints(self.network, image, photo_from_image, min_score, search)

    def fit(
        self,
        joints: FoundJoints,
        K: np.ndarray,
        size: tuple[int, int],
        heights: Sequence[float] | None = None,
        straight: StraightPhoto | None = None,
    ) -> list[FittedPerson]:
        """Bodies fitted to the joints, in their order. size: (width, height) of the photo in pixels. heights: standing,
        in metres, one for all or one a person; None: assumed. straight: the view of a photo with a lens, whose camera
        is K, and in whose pixels the joints and `bbox_xyxy`, `head_px` and `joints2d` of the people are; what else is
        in pixels is in those of the photo."""
        if not len(joints):
            return []
        stature, deviation, shape = self.fitter.statures(heights, len(joints))
        targets = landmark_targets(joints, K, stature, deviation)
        bodies = fit_anny(self.fitter.landmark_skeleton, targets, shape=shape)
        found_px = joints.pixels
        if straight is not None:
            found_px = straight.pixels_in_photo(found_px)
            bodies = replace(bodies, landmarks_px=straight.pixels_in_photo(bodies.landmarks_px))
        inside = ((found_px > -0.5) & (found_px < np.array(size) - 0.5)).all(-1)
        details = []
        for k in range(len(joints)):
            seen = (joints.confidence[k] >= SEEN) & inside[k]
            apart = np.linalg.norm(bodies.landmarks_px[k, TO_BODY] - found_px[k, OF_BODY], axis=-1)
            counted = seen[OF_BODY] if seen[OF_BODY].any() else np.isfinite(apart)
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
