"""People and their joints: MoveNet MultiPose finds people and 17 joints, BlazePose 33 landmarks on each of them.

Sources: the graphs themselves; Bazarevsky et al., "BlazePose", 2020, for its rotated square crop. Positions are pixels
(x, y) of the image, pixel centres at integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from dune_cli.models.graph import Graph, same_padding

SIDE = 256  # of the square that each network takes
MAX_PEOPLE = 6
MOVENET_OUTPUTS, BLAZEPOSE_OUTPUTS = 6, 4  # of the networks of `PeopleNetwork`
MIN_PERSON, MIN_JOINT, MIN_POSE = 0.2, 0.127, 0.5  # MoveNet's person and joint scores, BlazePose's pose score
HIPS, SHOULDERS = (11, 12), (5, 6)  # of MoveNet's joints
# the BlazePose landmark of each of MoveNet's joints
BLAZEPOSE_OF_MOVENET = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
# the MoveNet joint whose agreement each BlazePose landmark takes: for face, hands and feet the nearest one
NEAREST_JOINT = (
    0, 1, 1, 1, 2, 2, 2, 3, 4, 0, 0, 5, 6, 7, 8, 9, 10, 9, 10, 9, 10, 9, 10, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16,
)  # fmt: skip
BLAZEPOSE_NAMES = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb",
    "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel",
    "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
TOLERANCE, MAX_DISTANCE = 0.25, 0.5  # of the two networks' joints, in body sizes
MIN_AGREEMENT = 0.4
CROP_MARGIN = 1.25  # side of BlazePose's square over the diameter of the circle around the body
JOINT_SPREAD = 0.3  # squared deviation of a joint from its regressed position, over the side of the map
_PEAK = 5  # side of the window that a person's centre is the maximum of


@dataclass(frozen=True)
class DetectedPeople:
    """What MoveNet found in B images, AT_MOST each: scores (B, P), joints (B, P, 17, 2) and boxes (B, P, 4: left, top,
    right, bottom) as shares of its square's side, joint_scores (B, P, 17)."""

    scores: torch.Tensor
    joints: torch.Tensor
    joint_scores: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class Poses:
    """P people in one image.

    MoveNet's joints (P, 17, 2) px, joint_scores (P, 17), and agreement (P, 17) of BlazePose with them in [0, 1].
    BlazePose's landmarks (P, 33, 2) px, visibility (P, 33) in [0, 1], masks (P, SIDE, SIDE) in [0, 1] of each person in
    a square crop, image_from_square (P, 2, 3). world (P, 33, 3): the landmarks in metres, about the hips, in the
    image's axes (x right, y down, z away); None where BlazePose is without that output.
    """

    joints: torch.Tensor
    joint_scores: torch.Tensor
    agreement: torch.Tensor
    landmarks: torch.Tensor
    visibility: torch.Tensor
    masks: torch.Tensor
    image_from_square: torch.Tensor
    world: torch.Tensor | None = None


def letterbox(images: torch.Tensor, side: int) -> tuple[torch.Tensor, float, tuple[int, int]]:
    """Images (B, 3, H, W) in the middle of a black square, the scale, and the (x, y) of their first pixel in it."""
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    if size != (height, width):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    left, top = (side - size[1]) // 2, (side - size[0]) // 2
    return F.pad(images, (left, side - size[1] - left, top, side - size[0] - top)), scale, (left, top)


def decode_movenet(
    heads: tuple[torch.Tensor, ...], most: int = MAX_PEOPLE, min_centre: float | None = None
) -> DetectedPeople:
    """People from MoveNet's maps (B, C, h, w): centre, box size, box shift, joint heat, joint positions relative to the
    centre, joint shift. Pairs in the channels are (y, x). `most` people of an image; fewer, but one, where no image has
    so many whose centre scores `min_centre`.

    A person is a peak of the centre map. A joint is the cell with the largest heat within the person's box, after
    weighting the heat by a Gaussian around the position that the centre regresses. Its score is its largest weighted
    heat over all people.
    """
    centre, box_size, box_shift, heat, expected, shift = heads
    joints, height, width = heat.shape[1:]
    centre = centre.sigmoid()
    before, after = same_padding(height, _PEAK, 1)
    highest = F.max_pool2d(F.pad(centre, (before, after) * 2, value=float("-inf")), _PEAK, 1)
    flat = torch.where((centre - highest).abs() < 1e-6, centre, 0).flatten(1)
    scores, cells = flat.topk(most)
    if min_centre is not None:
        most = max(int((scores > min_centre).sum(1).max()), 1)
        scores, cells = scores[:, :most], cells[:, :most]
    position = torch.stack([cells // width, cells % width], -1).float()  # (B, P, 2)
    middle, half = position + _values_at(box_shift, cells), _values_at(box_size, cells).clamp(min=0) / 2
    limit = position.new_tensor([height, width])
    low, high = (middle - half).clamp(min=0).minimum(limit), (middle + half).clamp(min=0).minimum(limit)
    expected = position[:, :, None] + _values_at(expected, cells).unflatten(-1, (joints, 2))

    rows = torch.arange(height, device=heat.device).float()
    columns = torch.arange(width, device=heat.device).float()
    squared = (rows - expected[..., :1])[..., None] ** 2 + (columns - expected[..., 1:])[..., None, :] ** 2
    in_rows = (rows >= low[..., :1]) & (rows < high[..., :1])
    in_columns = (columns >= low[..., 1:]) & (columns < high[..., 1:])
    inside = (in_rows[..., None] & in_columns[..., None, :])[:, :, None]
    weighted = heat.sigmoid()[:, None] * (-squared / (JOINT_SPREAD * min(height, width))).exp() * inside
    weighted = weighted.flatten(3)
    cells = weighted.argmax(-1)  # (B, P, 17)
    joint_scores = weighted.amax(1, keepdim=True).expand_as(weighted).gather(3, cells[..., None])[..., 0]
    shifts = shift.unflatten(1, (joints, 2)).flatten(3)  # (B, 17, 2, h·w)
    picked = shifts[:, None].expand(-1, most, -1, -1, -1).gather(4, cells[..., None, None].expand(-1, -1, -1, 2, 1))
    places = torch.stack([cells // width, cells % width], -1) + picked[..., 0]

    detected = joint_scores > MIN_JOINT
    mean = (joint_scores * detected).sum(-1) / detected.sum(-1).clamp(min=1)
    boxes = torch.cat([(low / limit).flip(-1), (high / limit).flip(-1)], -1)
    return DetectedPeople(scores * mean, (places / limit).flip(-1), joint_scores, boxes)


def _values_at(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) at flat cells (B, P): (B, P, C)."""
    return values.flatten(2).gather(2, cells[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2)


def squares_of_joints(joints: torch.Tensor) -> torch.Tensor:
    """The squares that BlazePose looks at, from MoveNet's joints (P, 17, 2): see `squares`."""
    hips, shoulders = joints[:, HIPS].mean(1), joints[:, SHOULDERS].mean(1)
    radius = (joints - hips[:, None]).norm(dim=-1).amax(1) * 1.15  # hands, feet and the top of the head lie further out
    up = shoulders - hips
    up = up / up.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return squares_upright(hips, hips + up * radius[:, None])


def squares_upright(centre: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """(P, 2, 3): pixels of the image from pixels of a SIDE x SIDE square around `centre` (P, 2).

    The square is rotated so that `above` (P, 2), a point on the circle around the body, is straight up.
    """
    up = above - centre
    scale = 2 * CROP_MARGIN * up.norm(dim=-1).clamp(min=1) / SIDE
    angle = math.pi / 2 - torch.atan2(-up[:, 1], up[:, 0])
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], 1)
    return torch.cat([turn, (centre - turn.sum(-1) * (SIDE / 2))[..., None]], -1)


def crop_squares(image: torch.Tensor, image_from_square: torch.Tensor) -> torch.Tensor:
    """The squares (P, 3, SIDE, SIDE) out of an image (3, H, W), bilinear, black outside."""
    height, width = image.shape[-2:]
    steps = torch.arange(SIDE, device=image.device, dtype=image.dtype)
    square = torch.stack([*torch.meshgrid(steps, steps, indexing="xy"), torch.ones(SIDE, SIDE).to(image)], -1)
    places = torch.einsum("pij,hwj->phwi", image_from_square, square)
    places = 2 * places / (places.new_tensor([width, height]) - 1) - 1
    return F.grid_sample(image.expand(len(places), -1, -1, -1), places, align_corners=True)


@dataclass(frozen=True)
class _BlazePoseOutput:
    """BlazePose on P squares: landmarks (P, 39, 2) px, the last six auxiliary, visibility (P, 39), scores (P,), masks
    (P, SIDE, SIDE) of the person in the square, image_from_square (P, 2, 3), world as in `Poses`."""

    landmarks: torch.Tensor
    visibility: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor
    image_from_square: torch.Tensor
    world: torch.Tensor | None


def _run_blazepose(
    blazepose: Graph,
    crop: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    image_from_square: torch.Tensor,
) -> _BlazePoseOutput:
    points, scores, masks, *metric = blazepose(crop(image, image_from_square))
    points = points.unflatten(1, (39, 5))
    turn, shift = image_from_square[..., :2], image_from_square[..., 2]
    places = points[..., :2] @ turn.transpose(1, 2) + shift[:, None]
    world = _turned_with(turn, metric[0].unflatten(1, (39, 3))[:, :33]) if metric else None
    visibility, masks = points[..., 3].sigmoid(), masks[:, 0].sigmoid()
    return _BlazePoseOutput(places, visibility, scores[:, 0], masks, image_from_square, world)


def _turned_with(turn: torch.Tensor, world: torch.Tensor) -> torch.Tensor:
    """Points (P, K, 3) in the squares' axes, in those of the image: turned in its plane by `turn` (P, 2, 2), which may
    scale."""
    rotation = turn / turn[:, :, :1].norm(dim=1, keepdim=True)
    return torch.cat([world[..., :2] @ rotation.transpose(1, 2), world[..., 2:]], -1)


def body_size(joints: torch.Tensor) -> torch.Tensor:
    """(P,) px from MoveNet's joints (P, 17, 2): the longer of the torso and the shoulders' width, at least one."""
    torso = joints[:, SHOULDERS].mean(1) - joints[:, HIPS].mean(1)
    shoulders = joints[:, SHOULDERS[0]] - joints[:, SHOULDERS[1]]
    return torso.norm(dim=-1).maximum(shoulders.norm(dim=-1)).clamp(min=1)


def agreement(joints: torch.Tensor, joint_scores: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Agreement of the networks on MoveNet's joints: (P, 17) in [0, 1] from (P, 17, 2), (P, 17), (P, >= 29, 2).

    A Gaussian of their distance with a deviation of TOLERANCE body sizes; 0 from DISAGREE body sizes on and for joints
    that MoveNet does not see.
    """
    apart = (points[:, BLAZEPOSE_OF_MOVENET] - joints).norm(dim=-1) / body_size(joints)[:, None]
    agree = (-((apart / TOLERANCE) ** 2) / 2).exp()
    return torch.where((apart < MAX_DISTANCE) & (joint_scores > MIN_JOINT), agree, 0)


def estimate_poses(movenet: Graph, blazepose: Graph, images: torch.Tensor) -> list[Poses]:
    """The people in each of the images (B, 3, H, W), RGB in [0, 1], on whom both networks agree."""
    squared, scale, (left, top) = letterbox(images, SIDE)
    people = decode_movenet(movenet(squared * 255))
    result = []
    for image, scores, joints, joint_scores in zip(images, people.scores, people.joints, people.joint_scores):
        kept = scores > MIN_PERSON
        places = (joints[kept] * SIDE - joints.new_tensor([left, top])) / scale
        result.append(refine_poses(blazepose, image, places, joint_scores[kept]))
    return result


def refine_poses(
    blazepose: Graph,
    image: torch.Tensor,
    joints: torch.Tensor,
    joint_scores: torch.Tensor,
    crop: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Poses:
    """BlazePose on MoveNet's people (P, 17, 2) px, (P, 17) in an image (3, H, W), without those it contradicts.

    It runs twice: on a square from MoveNet's joints, then on one from its own auxiliary points. The run that agrees
    better with MoveNet counts, because the second may move to a neighbouring person. crop: another than `crop_squares`.
    """
    crop = crop or crop_squares
    first = _run_blazepose(blazepose, crop, image, squares_of_joints(joints))
    second = _run_blazepose(blazepose, crop, image, squares_upright(first.landmarks[:, 33], first.landmarks[:, 34]))
    agree = [agreement(joints, joint_scores, run.landmarks) for run in (first, second)]
    detected = (joint_scores > MIN_JOINT).sum(-1).clamp(min=1)
    mean = [(each.sum(-1) / detected) * (run.scores > MIN_POSE) for each, run in zip(agree, (first, second))]
    kept = torch.maximum(*mean) > MIN_AGREEMENT
    use_second = (mean[1] > mean[0])[kept]

    def better(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.where(use_second.view(-1, *[1] * (one.dim() - 1)), other[kept], one[kept])

    return Poses(
        joints[kept],
        joint_scores[kept],
        better(*agree),
        better(first.landmarks, second.landmarks)[:, :33],
        better(first.visibility, second.visibility)[:, :33],
        better(first.masks, second.masks),
        better(first.image_from_square, second.image_from_square),
        None if first.world is None or second.world is None else better(first.world, second.world),
    )


@dataclass(frozen=True)
class PeopleSearch:
    """looks: sides of the squares in which MoveNet sees the whole image, in pixels, multiples of 32; small people need
    a large one. turns: quarter turns of the image in which it looks, counter-clockwise; 0 is the image as it is. crowd:
    the number of people from which it also looks at squares of `crowd_looks`. most: people of a look. min_score:
    MoveNet's. same: two are one person where their joints are on average nearer than this, in body sizes. at_once:
    people of one pass of BlazePose."""

    looks: tuple[int, ...] = (256, 512)
    turns: tuple[int, ...] = (0,)
    crowd: int = 8
    crowd_looks: tuple[int, ...] = (768, 1024)
    most: int = 40
    min_score: float = MIN_PERSON
    same: float = 0.3
    at_once: int = 8


class PeopleNetwork(nn.Module):
    """MoveNet MultiPose and BlazePose full with its landmarks in metres: the people in an image, each once."""

    body = "anny"

    def __init__(self, movenet: Graph, blazepose: Graph) -> None:
        super().__init__()
        self.movenet, self.blazepose = movenet, blazepose

    def forward(self, image: torch.Tensor, search: PeopleSearch | None = None) -> Poses:
        """image (3, H, W), RGB in [0, 1]: the people on whom both networks agree, those of higher agreement first.

        MoveNet sees the image once for each of `search.looks` and `search.turns`, and of a crowd also for each of
        `search.crowd_looks`; who is found twice counts once.
        """
        search = search or PeopleSearch()
        found = [self._look(image, *look, search) for look in product(search.turns, search.looks)]
        joints, detected = self._distinct(found, search)
        if len(joints) >= search.crowd:
            found += [self._look(image, *look, search) for look in product(search.turns, search.crowd_looks)]
            joints, detected = self._distinct(found, search)
        parts = [
            refine_poses(self.blazepose, image, *both, crop=crop_squares_reduced)
            for both in zip(joints.split(search.at_once), detected.split(search.at_once))
        ]
        poses = _joined(parts) if len(parts) > 1 else parts[0]
        order = poses.agreement.mean(1).argsort(descending=True)
        poses = _chosen(poses, order)
        seen = poses.visibility[:, BLAZEPOSE_OF_MOVENET] > 0.5
        kept = distinct_people(poses.landmarks[:, BLAZEPOSE_OF_MOVENET], seen, body_size(poses.joints), search.same)
        return _chosen(poses, kept)

    def _look(
        self, image: torch.Tensor, turns: int, side: int, search: PeopleSearch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """MoveNet's people in the image after quarter turns, in a square of `side`: joints (P, 17, 2) px of the image,
        their scores (P, 17), and the people's (P,)."""
        squared, scale, (left, top) = letterbox(torch.rot90(image, turns, (1, 2))[None], side)
        people = decode_movenet(self.movenet(squared * 255), search.most, search.min_score)
        kept = people.scores[0] > search.min_score
        joints = (people.joints[0, kept] * side - people.joints.new_tensor([left, top])) / scale
        joints = turned_back(joints, turns, image.shape[2], image.shape[1])
        return joints, people.joint_scores[0, kept], people.scores[0, kept]

    @staticmethod
    def _distinct(
        found: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], search: PeopleSearch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The joints and joint scores of all looks, each person once, those of higher scores first."""
        joints, joint_scores, scores = (torch.cat(parts) for parts in zip(*found))
        order = scores.argsort(descending=True)
        joints, joint_scores = joints[order], joint_scores[order]
        kept = distinct_people(joints, joint_scores > MIN_JOINT, body_size(joints), search.same)
        return joints[kept], joint_scores[kept]


def turned_back(points: torch.Tensor, turns: int, width: int, height: int) -> torch.Tensor:
    """Pixels (..., 2) of an image of `width` x `height` px from those of its copy after quarter turns
    counter-clockwise."""
    x, y = points.unbind(-1)
    turned = {0: (x, y), 1: (width - 1 - y, x), 2: (width - 1 - x, height - 1 - y), 3: (y, height - 1 - x)}
    return torch.stack(turned[turns % 4], -1)


def crop_squares_reduced(image: torch.Tensor, image_from_square: torch.Tensor) -> torch.Tensor:
    """As `crop_squares`, but out of an image that is halved until a pixel of the square is less than two of its own, so
    that large people do not alias."""
    steps = image_from_square[:, :, 0].norm(dim=1).clamp(min=1).log2().floor().long()
    squares = torch.empty(len(steps), 3, SIDE, SIDE, dtype=image.dtype, device=image.device)
    for level in range(int(steps.max()) + 1 if len(steps) else 0):
        here = steps == level
        if here.any():
            level_from_square = image_from_square[here] / 2**level
            level_from_square[:, :, 2] += 0.5 / 2**level - 0.5  # pixel centres at integers
            squares[here] = crop_squares(image, level_from_square)
        if min(image.shape[-2:]) < 2:
            squares[steps > level] = crop_squares(image, image_from_square[steps > level] / 2**level)
            break
        image = F.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
    return squares


def distinct_people(joints: torch.Tensor, seen: torch.Tensor, size: torch.Tensor, same: float) -> torch.Tensor:
    """Numbers of people, in order, without those who are an earlier one.

    joints (P, J, 2) px, seen (P, J), size (P,) px. The same person: the mean distance of joints that both have, over
    the smaller body's size, is below `same`.
    """
    kept: list[int] = []
    for number in range(len(joints)):
        if kept:
            others = torch.tensor(kept, device=joints.device)
            both = (seen[others] & seen[number]).to(joints.dtype)
            apart = ((joints[others] - joints[number]).norm(dim=-1) * both).sum(1) / both.sum(1).clamp(min=1)
            nearest = torch.where(both.sum(1) > 0, apart / torch.minimum(size[others], size[number]), torch.inf)
            if nearest.min() < same:
                continue
        kept.append(number)
    return torch.tensor(kept, dtype=torch.long, device=joints.device)


def _chosen(poses: Poses, chosen: torch.Tensor) -> Poses:
    values = {one.name: getattr(poses, one.name) for one in fields(poses)}
    return Poses(**{name: None if value is None else value[chosen] for name, value in values.items()})


def _joined(parts: list[Poses]) -> Poses:
    names = [one.name for one in fields(Poses)]
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    return Poses(**{name: None if values[0] is None else torch.cat(values) for name, values in columns.items()})
