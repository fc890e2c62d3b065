"""The losses of the head for people: cells' scores, and of people at their cells place, depth, pose, shape, joints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from dune_cli.bodies.anny import Anny
from dune_cli.bodies.skeleton import FREE_JOINTS
from dune_cli.models.people_head import PersonNumbers, depth_of
from dune_cli.training.human.people import KEYPOINTS

SPREAD = 0.7  # cells: deviation of the scores wanted around a head
FOCUS = 2.0  # power of the scores' error that weights it
# what each loss counts for
WEIGHTS = {
    **{"score": 1.0, "offset": 0.5, "nearness": 2.0, "turns": 2.0, "shape": 0.2, "joints": 5.0, "pixels": 2.0},
}
LARGEST_PIXELS = 1.0  # of a joint's distance in the picture, in body sizes


@dataclass(frozen=True)
class PeopleTargets:
    """Q people of a batch at the cells where they are asked for.

    image (Q,): in the batch; cells (Q, 2) row and column. K (Q, 3, 3). The rest as
    in `LabelledPeople`, and offset (Q, 2): the head from the cell's centre, in cells.
    """

    image: torch.Tensor
    cells: torch.Tensor
    K: torch.Tensor
    offset: torch.Tensor
    rotations: torch.Tensor
    shape: torch.Tensor
    head: torch.Tensor
    turn_weights: torch.Tensor
    place_weights: torch.Tensor
    size_px: torch.Tensor


def targets_of(people: dict[str, torch.Tensor], n: int, size_px: int, jitter: torch.Generator | None) -> PeopleTargets:
    """The trusted people of a batch (arrays of `LabelledPeople.arrays`, stacked). n: cells on a side. jitter: now and
    then a neighbouring cell is asked instead of the head's own."""
    count = people["trusted"].shape[1]
    used = torch.arange(count)[None] < people["people"][:, None]
    image, row = (used & people["trusted"].bool()).nonzero().unbind(-1)
    K = people["K"][image]
    head = people["head"][image, row]
    head_px = (K @ head[..., None])[..., 0]
    places = head_px[:, :2] / head_px[:, 2:] * (n / size_px)  # x and y, in cells from the corner
    moved = places
    if jitter is not None:
        moved = places + 0.4 * torch.randn(places.shape, generator=jitter)
    cells = moved.floor().long().clamp(0, n - 1).flip(-1)
    boxes = people["boxes"][image, row]
    return PeopleTargets(
        image=image,
        cells=cells,
        K=K,
        offset=places - (cells.flip(-1) + 0.5),
        rotations=people["rotations"][image, row],
        shape=people["shape"][image, row],
        head=head,
        turn_weights=people["turn_weights"][image, row],
        place_weights=people["place_weights"][image, row],
        size_px=(boxes[:, 2:] - boxes[:, :2]).amax(-1).clamp_min(8.0),
    )


def score_loss(
    logits: torch.Tensor, people: dict[str, torch.Tensor], targets: PeopleTargets, size_px: int
) -> torch.Tensor:
    """Binary cross-entropy of cells (B, n, n) with a Gaussian about each head, weighted by the error (X. Li et al.,
    "Generalized focal loss", NeurIPS 2020), over the number of people. Cells of doubtful people do not count."""
    batch, n = logits.shape[:2]
    steps = torch.arange(n, device=logits.device) + 0.5
    wanted, counted = torch.zeros_like(logits), torch.ones_like(logits)
    places = targets.offset + targets.cells.flip(-1) + 0.5
    for image, place in zip(targets.image.tolist(), places.floor() + 0.5):
        apart = (steps[:, None] - place[1]) ** 2 + (steps[None] - place[0]) ** 2
        wanted[image] = torch.maximum(wanted[image], (-apart / (2 * SPREAD**2)).exp() * (apart < 2.5))
    scale = n / size_px
    for image in range(batch):
        for row in range(int(people["people"][image])):
            if not people["trusted"][image, row]:
                left, top, right, bottom = (people["boxes"][image, row] * scale).tolist()
                rows = slice(max(int(top), 0), max(int(bottom) + 1, 0))
                counted[image, rows, max(int(left), 0) : max(int(right) + 1, 0)] = 0
    counted = torch.maximum(counted, (wanted > 0).float())
    error = (logits.detach().sigmoid() - wanted).abs() ** FOCUS
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (loss * error * counted).sum() / max(len(targets.image), 1)


def person_losses(said: PersonNumbers, targets: PeopleTargets, body: Anny, cells_px: float) -> dict[str, torch.Tensor]:
    """The losses (Q,) of each person, by name. cells_px: side of a cell."""
    columns = [body.joint_names.index(name) for name in KEYPOINTS]
    free = [body.joint_names.index(name) for name in FREE_JOINTS]
    with torch.no_grad():
        true = joints_about_head(body, targets.rotations, targets.shape, free)[:, columns]
    found = joints_about_head(body, said.rotations, said.shape, free)[:, columns]
    weights = targets.place_weights
    depth = depth_of(said.nearness, targets.K)
    true_nearness = (targets.K[:, 0, 0] / targets.head[:, 2]).log()
    head_px = (targets.cells.flip(-1) + 0.5 + said.offsets) * cells_px
    centre, focal_px = targets.K[:, :2, 2], targets.K[:, 0, :1]
    head = torch.cat([(head_px - centre) / focal_px * depth[:, None], depth[:, None]], -1)
    true_px = project(true + targets.head[:, None], targets.K)
    found_px = project(found + head[:, None], targets.K)
    pixels = (found_px - true_px).norm(dim=-1) / targets.size_px[:, None]
    turns = (said.rotations - targets.rotations).square().sum((-1, -2))
    return {
        "offset": (said.offsets - targets.offset).abs().sum(-1),
        "nearness": (said.nearness - true_nearness).abs(),
        "turns": _mean(turns, targets.turn_weights),
        "shape": (said.shape - targets.shape).abs().mean(-1),
        "joints": _mean((found - true).norm(dim=-1), weights),
        "pixels": _mean(pixels.clamp_max(LARGEST_PIXELS), weights),
    }


def joints_about_head(body: Anny, rotations: torch.Tensor, shape: torch.Tensor, free: list[int]) -> torch.Tensor:
    """(Q, J, 3): the joints of posed bodies from the head, in metres. rotations (Q, F, 3, 3) of the joints `free`."""
    full = torch.eye(3, device=rotations.device).repeat(len(rotations), len(body.joint_names), 1, 1)
    full = full.index_copy(1, torch.tensor(free, device=rotations.device), rotations)
    joints = body.posed_joints(full, shape)
    return joints - joints[:, body.head, None]


def project(points: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """(Q, J, 2) px of points (Q, J, 3) by K (Q, 3, 3), depths of at least 10 cm."""
    image = points @ K.mT
    return image[..., :2] / image[..., 2:].clamp_min(0.1)


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum(-1) / weights.sum(-1).clamp_min(1e-6)
