"""People in images: MoveNet's maps decoded, squares, agreement, duplicates; the networks that come with dune."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.checkpoints.loader import load_human_network
from dune_cli.io.photos import read_photo
from dune_cli.models import people_poses as poses
from dune_cli.models.people_poses import (
    BLAZEPOSE_NAMES,
    BLAZEPOSE_OF_MOVENET,
    NEAREST_JOINT,
    SIDE,
    PeopleNetwork,
    PeopleSearch,
)

CELLS = 64  # of MoveNet's maps, each way
FIXTURE = Path(__file__).parents[1] / "parity" / "people_networks.npz"


def maps() -> list[torch.Tensor]:
    """MoveNet's maps of an empty picture: centre, box size, box shift, heat, expected places, shifts."""
    channels = (1, 2, 2, 17, 34, 34)
    made = [torch.zeros(1, count, CELLS, CELLS) for count in channels]
    made[0] -= 9
    made[3] -= 9
    return made


def test_a_person_is_decoded() -> None:
    """A centre at (x, y) = (20, 30) whose box is 11 wide and 21 high; the left ankle, number 15, lies 8 cells below."""
    centre, box_size, _, heat, expected, shift = heads = maps()
    centre[0, 0, 30, 20] = centre[0, 0, 30, 21] = 2
    centre[0, 0, 30, 21] -= 1e-3  # its neighbour is no second person
    box_size[0, :, 30, 20] = torch.tensor([21.0, 11])
    expected[0, 2 * 15 : 2 * 15 + 2, 30, 20] = torch.tensor([8.0, 0])
    heat[0, 15, 38, 21] = heat[0, 15, 30, 20] = 2.0  # the second is far from where the ankle is expected
    heat[0, 15, 38, 30] = 9.0  # outside the box
    shift[0, 2 * 15 : 2 * 15 + 2, 38, 21] = torch.tensor([0.25, -0.5])

    found = poses.decode_movenet(tuple(heads))
    sure = 1 / (1 + math.exp(-2))
    joint = sure * math.exp(-1 / (0.3 * CELLS))
    assert found.joint_scores[0, 0, 15].item() == pytest.approx(joint, rel=1e-5)
    assert found.joints[0, 0, 15].tolist() == pytest.approx([20.5 / CELLS, 38.25 / CELLS])
    assert found.boxes[0, 0].tolist() == pytest.approx([side / CELLS for side in (14.5, 19.5, 25.5, 40.5)])
    assert found.scores[0, 0].item() == pytest.approx(sure * joint, rel=1e-5)  # the other joints are too faint to count
    assert (found.scores[0, 1:] < 0.01).all()


def test_a_joint_counts_for_whom_it_suits_best() -> None:
    """Two people whose boxes hold the same hot cell, one expects the joint there, the other 4 cells away."""
    centre, box_size, _, heat, expected, _ = heads = maps()
    centre[0, 0, 30, 20], centre[0, 0, 30, 40] = 3, 2
    box_size[0] = 60
    heat[0, 9, 30, 30] = 2
    expected[0, 18:20, 30, 20], expected[0, 18:20, 30, 40] = torch.tensor([0.0, 6]), torch.tensor([0.0, -10])
    found = poses.decode_movenet(tuple(heads))
    assert found.joint_scores[0, :2, 9].tolist() == pytest.approx([1 / (1 + math.exp(-2))] * 2)
    assert found.joints[0, :2, 9].tolist() == [[30 / CELLS, 30 / CELLS]] * 2


def test_letterbox_keeps_the_shape_in_the_middle() -> None:
    squared, scale, corner = poses.letterbox(torch.ones(1, 3, 20, 40), 64)
    assert (scale, corner) == (1.6, (0, 16))
    assert squared.shape == (1, 3, 64, 64) and squared[0, 0, 16:48].eq(1).all() and squared.sum() == 3 * 32 * 64


def test_a_square_stands_upright_on_the_body() -> None:
    """A body of radius 32 lying to the right: what is above it in the square lies to its right in the image."""
    image_from_square = poses.squares_upright(torch.tensor([[50.0, 60]]), torch.tensor([[82.0, 60]]))[0]
    middle = torch.tensor([SIDE / 2, SIDE / 2, 1])
    assert (image_from_square @ middle).tolist() == pytest.approx([50, 60], abs=1e-4)
    top = torch.tensor([SIDE / 2, SIDE / 2 - SIDE / 2 / poses.CROP_MARGIN, 1])
    assert (image_from_square @ top).tolist() == pytest.approx([82, 60], abs=1e-4)
    assert poses.squares_upright(torch.zeros(1, 2), torch.zeros(1, 2)).isfinite().all()  # a body without extent


def test_a_square_shows_the_image_turned() -> None:
    """Body upright, radius SIDE / 2.5: the square is the image moved, pixel for pixel, black outside."""
    image = torch.rand(3, 300, 280, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([[100.0, 130]])
    square = poses.crop_squares(image, poses.squares_upright(centre, centre - torch.tensor([[0.0, SIDE / 2.5]])))[0]
    assert torch.allclose(square[:, :, 28:], image[:, 2:258, : 100 + 128], atol=1e-3)
    assert square[:, :, :27].abs().max() == 0


def standing() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MoveNet's joints (1, 17, 2) of a person with a torso of 40 px, their scores, BlazePose's 33 right on them."""
    joints = torch.zeros(1, 17, 2)
    joints[0, :, 0] = 60 + 20 * (torch.arange(17) % 2)
    joints[0, :, 1] = torch.tensor([20.0] * 5 + [40] * 6 + [80] * 2 + [100] * 2 + [120] * 2)
    return joints, torch.full((1, 17), 0.8), joints[:, NEAREST_JOINT].clone()


def test_agreement_fades_with_the_distance() -> None:
    joints, scores, points = standing()
    assert poses.body_size(joints).tolist() == [40]
    assert poses.agreement(joints, scores, points).eq(1).all()
    points[0, BLAZEPOSE_OF_MOVENET[9]] += torch.tensor([6.0, 8])  # a quarter of 40 px
    points[0, BLAZEPOSE_OF_MOVENET[10]] += torch.tensor([0.0, 20])  # a half
    scores[0, 15] = 0.1  # not seen
    agree = poses.agreement(joints, scores, points)[0]
    assert agree[9].item() == pytest.approx(math.exp(-0.5)) and agree[10] == agree[15] == 0
    assert agree.sum().item() == pytest.approx(14 + math.exp(-0.5))


def test_every_joint_that_both_have_speaks_for_itself() -> None:
    assert len(NEAREST_JOINT) == 33 and [NEAREST_JOINT[joint] for joint in BLAZEPOSE_OF_MOVENET] == list(range(17))
    assert len(BLAZEPOSE_NAMES) == 33 and BLAZEPOSE_NAMES[28] == "right_ankle"


def test_people_are_counted_once() -> None:
    joints = torch.zeros(4, 17, 2)
    joints[1] += 5  # a sixth of the body size: the first one again
    joints[2] += 60
    joints[3] += 5  # as the second, with no joint in common with the first
    seen = torch.ones(4, 17, dtype=torch.bool)
    seen[3], seen[0, 5:] = False, False
    seen[3, 8:] = True
    size = torch.full((4,), 30.0)
    assert poses.distinct_people(joints, seen, size, 0.3).tolist() == [0, 2, 3]
    assert poses.distinct_people(joints[:0], seen[:0], size[:0], 0.3).tolist() == []


def test_fewer_people_where_no_centre_is_sure() -> None:
    heads = maps()
    heads[0][0, 0, 30, 20] = heads[0][0, 0, 10, 50] = 2
    assert poses.decode_movenet(tuple(heads), 40, 0.2).scores.shape == (1, 2)
    assert poses.decode_movenet(tuple(maps()), 40, 0.2).scores.shape == (1, 1)


def test_large_squares_do_not_alias() -> None:
    """A fine chequerboard becomes grey, and a ramp stays where it is."""
    rows, columns = torch.meshgrid(torch.arange(2048), torch.arange(2048), indexing="ij")
    board, ramp = ((rows + columns) % 2).float().expand(3, -1, -1), (columns / 2048).expand(3, -1, -1)
    square = poses.squares_upright(torch.tensor([[1024.0, 1024]]), torch.tensor([[1024.0, 264]]))
    assert (poses.crop_squares_reduced(board, square)[0] - 0.5).abs().max() < 1e-4
    far = (poses.crop_squares_reduced(ramp, square) - poses.crop_squares(ramp, square))[..., 4:-4, 4:-4].abs().max()
    assert far < 1e-4
    small = poses.squares_upright(torch.tensor([[1024.0, 1024]]), torch.tensor([[1024.0, 950]]))
    assert torch.equal(poses.crop_squares_reduced(ramp, small), poses.crop_squares(ramp, small))


@pytest.fixture(scope="module")
def network() -> PeopleNetwork:
    found = load_human_network("dune-people", "cpu")
    assert isinstance(found, PeopleNetwork)
    return found


def photo(name: str = "astronaut.png") -> torch.Tensor:
    rgb = read_photo(Path(__file__).parents[2] / "examples" / "photos" / name).rgb
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 255


@torch.inference_mode()
def test_blazepose_is_that_of_the_original_runtime(network: PeopleNetwork) -> None:
    """LiteRT 2.3 on a crop of the astronaut and on noise: landmarks to a hundredth of a pixel, metres to 0.1 mm."""
    square = poses.squares_upright(torch.tensor([[220.0, 420.0]]), torch.tensor([[225.0, 40.0]]))
    noise = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    landmarks, scores, _, world = network.blazepose(torch.cat([poses.crop_squares(photo(), square), noise]))
    wanted = np.load(FIXTURE)
    apart = np.abs(landmarks.numpy().reshape(2, 39, 5) - wanted["landmarks"].reshape(2, 39, 5))
    assert apart[..., :2].max() < 0.01
    assert np.abs(scores.numpy() - wanted["score"]).max() < 1e-4
    assert np.abs(world.numpy() - wanted["world"]).max() < 1e-4


@torch.inference_mode()
def test_movenet_is_that_of_the_original_runtime(network: PeopleNetwork) -> None:
    """TensorFlow.js 4.22 with its own decoding of the maps: rows of 17 (y, x, score), box and score."""
    squared, _, _ = poses.letterbox(photo()[None], SIDE)
    found = poses.decode_movenet(network.movenet((squared * 255).round()))
    wanted = np.load(FIXTURE)["movenet"]
    assert np.allclose(found.scores[0], wanted[:, 55], atol=1e-3)
    first = wanted[0, :51].reshape(17, 3)
    sure = first[:, 2] > 0.2
    assert sure.sum() >= 10
    assert np.allclose(found.joints[0, 0].numpy()[sure], first[sure][:, [1, 0]], atol=1e-3)


def test_the_astronaut_is_found_once(network: PeopleNetwork) -> None:
    """Joints as seen by eye in the picture of 512 px: nose, eyes (the left one at its right), shoulders."""
    with torch.inference_mode():
        found = network(photo())
    assert len(found.landmarks) == 1 and found.world is not None
    by_eye = {0: (223, 127), 2: (244, 108), 5: (203, 108), 11: (305, 245), 12: (115, 245)}
    for joint, place in by_eye.items():
        assert (found.landmarks[0, joint] - torch.tensor(place)).norm() < 25, (joint, found.landmarks[0, joint])
    assert 0.25 < (found.world[0, 11] - found.world[0, 12]).norm() < 0.45  # metres between the shoulders
    assert found.world[0, 0, 1] < found.world[0, 11, 1] < 0  # y down, the hips at 0


def test_metres_turn_with_the_picture(network: PeopleNetwork) -> None:
    """Of the picture on its side the landmarks in metres lie on their side."""
    with torch.inference_mode():
        upright, lying = (network(image, PeopleSearch(looks=(256,))) for image in (photo(), photo().rot90(1, (1, 2))))
    assert len(upright.landmarks) == 1
    x, y, _ = upright.world[0, 11:13].unbind(-1)
    assert torch.allclose(lying.world[0, 11:13, :2], torch.stack([y, -x], -1), atol=0.05)


@pytest.mark.parametrize("turns", range(4))
def test_places_of_a_turned_picture_are_turned_back(turns: int) -> None:
    picture = torch.zeros(1, 5, 7)
    picture[0, 1, 4] = 1
    row, column = torch.rot90(picture, turns, (1, 2))[0].nonzero()[0]
    assert poses.turned_back(torch.stack([column, row]), turns, 7, 5).tolist() == [4, 1]


def test_who_is_upside_down_is_found_in_the_turned_picture(network: PeopleNetwork) -> None:
    image = torch.rot90(photo(), 2, (1, 2))
    with torch.inference_mode():
        found = network(image, PeopleSearch(looks=(256,), turns=(1, 2, 3)))
    nose = torch.tensor([511.0 - 223, 511 - 127])
    assert len(found.landmarks) == 1 and (found.landmarks[0, 0] - nose).norm() < 25


def test_nobody(network: PeopleNetwork) -> None:
    with torch.inference_mode():
        for image in (photo("coffee.png"), torch.zeros(3, 40, 300), torch.rand(3, 1, 1)):
            found = network(image)
            assert len(found.landmarks) == 0 and found.world.shape == (0, 33, 3)
