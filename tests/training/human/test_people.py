"""Labelled people: parts of pictures, mirror images, pictures made of bodies, losses of the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.bodies.skeleton import FREE_JOINTS
from dune_cli.models.people_head import PersonNumbers
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.training.human.losses import person_losses, score_loss, targets_of
from dune_cli.training.human.people import KEYPOINTS, LEAST_WEIGHT, MOST_PEOPLE, LabelledPeople, weights_of
from dune_cli.training.human.synthetic import PictureMaker
from dune_cli.training.human.views import draw_view
from support.made_people import maker


@pytest.fixture(scope="module")
def drawing() -> PictureMaker:
    return maker()


def in_the_picture(drawing: PictureMaker, people: LabelledPeople) -> np.ndarray:
    """(P, F, 2): the joints of the labelled bodies in their picture."""
    body = drawing.body
    full = torch.eye(3).repeat(len(people), len(body.joint_names), 1, 1)
    full[:, drawing.skeleton.free] = torch.from_numpy(people.rotations)
    joints = body.posed_joints(full, torch.from_numpy(people.shape)).numpy()
    about = joints[:, drawing.skeleton.free] - joints[:, body.head, None]
    image = (about + people.head[:, None]) @ people.K.T
    return image[..., :2] / image[..., 2:]


def test_views_move_the_people_with_the_picture(drawing: PictureMaker) -> None:
    made = next(m for m in map(drawing.make, range(20)) if m.people.trusted.all() and len(m.people) > 1)
    whole, same = draw_view(made.rgb, made.people, "a", 0, 96, 0)
    assert np.array_equal(whole, made.rgb) and np.allclose(same.K, made.people.K)
    before = in_the_picture(drawing, made.people)
    mirror = made.people.flipped(96)
    names = [name.translate(str.maketrans("LR", "RL")) if name[-2] == "." else name for name in FREE_JOINTS]
    after = in_the_picture(drawing, mirror)[:, [FREE_JOINTS.index(name) for name in names]]
    assert np.abs(after * [-1, 1] + [96, 0] - before).max() < 1.0
    for number in range(1, 6):
        picture, seen = draw_view(made.rgb, made.people, "a", number, 64, 0)
        again, _ = draw_view(made.rgb, made.people, "a", number, 64, 0)
        assert picture.shape == (64, 64, 3) and np.array_equal(picture, again)
        head = seen.head_px()
        assert ((head >= 0) & (head < 64)).all(1)[seen.trusted].all()
    transform = np.array([[2.0, 0, -30], [0, 2.0, -10], [0, 0, 1]])
    moved = made.people.moved(transform, 1000)
    assert np.allclose(in_the_picture(drawing, moved), before * 2 - [30, 10], atol=1e-2)


def test_made_up_people_are_where_the_labels_say(drawing: PictureMaker) -> None:
    pictures = [drawing.make(number) for number in range(6)]
    assert np.array_equal(pictures[0].rgb, maker().make(0).rgb)
    assert not np.array_equal(pictures[0].rgb, pictures[1].rgb)
    people = sum(len(made.people) for made in pictures)
    trusted = sum(int(made.people.trusted.sum()) for made in pictures)
    assert people >= 6 and trusted >= 4
    for made in pictures:
        joints = in_the_picture(drawing, made.people)
        low, high = made.people.boxes[:, None, :2], made.people.boxes[:, None, 2:]
        assert ((joints > low - 2) & (joints < high + 2)).all()


def test_the_truth_costs_nothing(drawing: PictureMaker) -> None:
    stacked = [drawing.make(number).people.arrays() for number in range(4)]
    people = {name: torch.from_numpy(np.stack([one[name] for one in stacked])) for name in stacked[0]}
    assert people["rotations"].shape == (4, MOST_PEOPLE, len(FREE_JOINTS), 3, 3)
    for jitter in (None, torch.Generator().manual_seed(0)):
        targets = targets_of(people, 12, 96, jitter)
        assert len(targets.image) == int(people["trusted"].sum())
        nearness = (targets.K[:, 0, 0] / targets.head[:, 2]).log()
        truth = PersonNumbers(targets.offset, nearness, targets.rotations, targets.shape)
        losses = person_losses(truth, targets, drawing.body, 8.0)
        assert max(float(value.max()) for value in losses.values()) < 2e-3
        wrong = PersonNumbers(targets.offset + 1, nearness + 0.1, targets.rotations.mT, targets.shape)
        assert all(
            float(value.mean()) > 0.01
            for name, value in person_losses(wrong, targets, drawing.body, 8.0).items()
            if name != "shape"
        )
    targets = targets_of(people, 12, 96, None)
    right = torch.full((4, 12, 12), -9.0)
    right[targets.image, targets.cells[:, 0], targets.cells[:, 1]] = 9.0
    assert float(score_loss(right, people, targets, 96)) < 0.3 * float(score_loss(-right, people, targets, 96))


def test_what_was_not_seen_counts_little() -> None:
    confidence = {name: np.array([1.0]) for name in BLAZEPOSE_NAMES}
    confidence |= {f"{side}_{name}": np.array([0.0]) for side in ("left",) for name in ("knee", "ankle", "foot_index")}
    turn, place = weights_of(confidence)
    assert turn[0, FREE_JOINTS.index("upperleg01.L")] == pytest.approx(LEAST_WEIGHT)
    assert place[0, KEYPOINTS.index("foot.L")] == pytest.approx(LEAST_WEIGHT)
    assert turn[0, FREE_JOINTS.index("upperleg01.R")] == place[0, KEYPOINTS.index("root")] == 1
