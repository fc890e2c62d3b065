"""People in a photo, as bodies in metres in front of its camera: Multi-HMR on SMPL-X or Anny (docs/models/multihmr.md),
or a head of `dune train human` on Anny (docs/models/people-head.md).

This is what `load_human` gives of their files, and works on letterboxed squares; `photo.py` works on photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dune_cli.bodies.body import Body, BodyOutput
from dune_cli.bodies.statures import AssumedHeight
from dune_cli.checkpoints.loader import MultiHmr
from dune_cli.models.multihmr_common import MIN_SCORE, Detections, to_rotvec
from dune_cli.models.people_head import HeadedPeople
from dune_cli.provenance import Source

HANDS, JAW, EYES = 30, 1, 2
MIN_DEPTH_M = 1e-3  # of points with a pixel


@dataclass(frozen=True)
class Person:
    """One person, in metres in the camera's frame (OpenCV axes), pixels in the person's image; tensors float32.

    bbox_xyxy (4,): of the whole body's projection, may leave the image. head_px (2,). translation (3,): the pelvis
    joint. head (3,): the head joint. offset (3,): added to the posed body's vertices. rotvec (R, 3): of the joints of
    `HumanModel.rotation_names`. shape: scalars by name (Anny), or "betas" (S,) (SMPL-X). expression (E,) or None.
    joints3d (J, 3). joints2d (J, 2): NaN for a joint behind the camera. vertices (V, 3).
    """

    score: float
    bbox_xyxy: torch.Tensor
    head_px: torch.Tensor
    translation: torch.Tensor
    head: torch.Tensor
    offset: torch.Tensor
    rotvec: torch.Tensor
    shape: dict[str, torch.Tensor]
    expression: torch.Tensor | None
    joints3d: torch.Tensor
    joints2d: torch.Tensor
    vertices: torch.Tensor


class HumanModel(nn.Module):
    """A human network with its body model. Runs on the device of its weights, without gradients."""

    def __init__(self, network: MultiHmr | HeadedPeople, body: Body) -> None:
        super().__init__()
        self.network, self.body = network, body

    @property
    def source(self) -> Source:
        """The source of the network's weights."""
        return self.network.source

    @property
    def sources(self) -> list[Source]:
        """All weights behind a result: the network's, the encoder's of a head, the body's."""
        encoder = [self.network.encoder.source] if isinstance(self.network, HeadedPeople) else []
        return [self.source, *encoder, self.body.source]

    @property
    def assumed_height(self) -> AssumedHeight | None:
        """The standing height of adults that a head's distances follow from; None where metres are predicted."""
        if not isinstance(self.network, HeadedPeople):
            return None
        return AssumedHeight(self.network.card.assumed_height, self.network.card.assumed_height_sd)

    @property
    def size_px(self) -> int:
        """The side of the square that the network takes."""
        return self.network.size_px

    @property
    def vertex_count(self) -> int:
        """V, the vertices of one body."""
        shape = self.body.upright.new_zeros(1, len(self.body.shape_names))
        return self.body(self.body.rest_rotations(), shape).vertices.shape[1]

    @property
    def rotation_names(self) -> tuple[str, ...]:
        """The joints of a person's `rotvec`, in its order, which is that of the published files."""
        names = self.body.joint_names
        return tuple(names[joint] for joint in self._rotated_joints())

    def _rotated_joints(self) -> list[int]:
        """Indices of the body's joints in the order of the network's rotations.

        For SMPL-X the network predicts root, 21 body joints, hands, jaw; the body has jaw and eyes before the hands.
        """
        count = len(self.body.joint_names)
        if self.network.body == "anny":
            return list(range(count))
        jaw = count - HANDS - EYES - JAW
        return [*range(jaw), *range(count - HANDS, count), jaw]

    @torch.inference_mode()
    def forward(
        self, images: torch.Tensor, K: torch.Tensor | None = None, min_score: float = MIN_SCORE
    ) -> list[list[Person]]:
        """The people of each image: nearest first (Anny), by rows and columns (SMPL-X).

        images: (B, 3, S, S) RGB in [0, 1], letterboxed. K: (B, 3, 3) of these squares; None: predicted (Anny), or a
        field of view of 60 degrees (SMPL-X). Pixels in K and in the results are measured from the square's top left
        corner, as in the published heads: the centre is (S/2, S/2). ValueError for other shapes.
        """
        return [self.people(detections) for detections in self.network(images, K, min_score)]

    @torch.inference_mode()
    def people(self, detections: Detections) -> list[Person]:
        """The bodies of one image's detections, each placed at its detected head."""
        if not len(detections):
            return []
        rotations = detections.rotations
        if isinstance(self.network, HeadedPeople):  # it turns some of the joints
            turned = [self.body.joint_names.index(name) for name in self.network.joints]
            rest = torch.eye(3, device=rotations.device).repeat(len(rotations), len(self.body.joint_names), 1, 1)
            rotations = rest.index_copy(1, torch.tensor(turned, device=rest.device), rotations)
        rotvec = to_rotvec(rotations)
        shape = detections.shape[:, : len(self.body.shape_names)]
        posed = self.pose(rotations, shape, detections.expression)
        offset = detections.head - posed.joints[:, self.body.head]
        vertices, joints = posed.vertices + offset[:, None], posed.joints + offset[:, None]
        return [
            Person(
                score=float(detections.scores[k]),
                bbox_xyxy=project_box(vertices[k, self.body.surface], detections.K, detections.head_px[k]),
                head_px=detections.head_px[k],
                translation=joints[k, 0],
                head=joints[k, self.body.head],
                offset=offset[k],
                rotvec=rotvec[k],
                shape=self._named(shape[k]),
                expression=None if detections.expression is None else detections.expression[k],
                joints3d=joints[k],
                joints2d=project_points(joints[k], detections.K),
                vertices=vertices[k],
            )
            for k in range(len(detections))
        ]

    def pose(self, rotations: torch.Tensor, shape: torch.Tensor, expression: torch.Tensor | None = None) -> BodyOutput:
        """The body posed by the network's rotations (P, R, 3, 3), with joint 0 at the body's origin.

        Joints without a predicted rotation (SMPL-X's eyes) keep the identity. A person's vertices are these plus
        `offset`.
        """
        joints = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        joints = joints.repeat(len(rotations), len(self.body.joint_names), 1, 1)
        joints[:, self._rotated_joints()] = rotations
        return self.body(joints, shape, expression)

    def _named(self, shape: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"betas": shape} if self.network.body == "smplx" else dict(zip(self.body.shape_names, shape))


def project_points(points: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """points (N, 3), K (3, 3) -> pixels (N, 2); NaN for points behind the camera."""
    pixels = points @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    return pixels.where(points[:, 2:] > MIN_DEPTH_M, torch.nan)


def project_box(points: torch.Tensor, K: torch.Tensor, head_px: torch.Tensor) -> torch.Tensor:
    """(x0, y0, x1, y1) of the projections of points (N, 3) in front of the camera, and the head."""
    pixels = project_points(points, K)
    pixels = torch.cat([pixels[pixels.isfinite().all(-1)], head_px[None]])
    return torch.cat([pixels.amin(0), pixels.amax(0)])
