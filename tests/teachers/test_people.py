"""The people teacher: heat maps, mask; the file; the real networks."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.checkpoints import weight_files
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.io.photos import read_photo
from dune_cli.models import people_poses as poses
from dune_cli.models.graph import Graph, GraphLayer, describe
from dune_cli.models.people_poses import SIDE, Poses
from dune_cli.teachers import people
from dune_cli.teachers.registry import load_teacher

CPU = torch.device("cpu")
BAKED = Path(os.environ.get("DUNE_PEOPLE_TEACHER", "people-teacher.safetensors"))  # the real one, where it was baked


def standing() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MoveNet's joints (1, 17, 2) of a person with a torso of 40 px, their scores, BlazePose's 33 right on them."""
    joints = torch.zeros(1, 17, 2)
    joints[0, :, 0] = 60 + 20 * (torch.arange(17) % 2)
    joints[0, :, 1] = torch.tensor([20.0] * 5 + [40] * 6 + [80] * 2 + [100] * 2 + [120] * 2)
    return joints, torch.full((1, 17), 0.8), joints[:, people.NEAREST_JOINT].clone()


def blazepose(shift: tuple[float, float] = (0, 0), score: float = 1.0) -> Graph:
    """A made-up BlazePose: the same joints in every square, that of `standing` at its own size, and a mask of ones.

    It adds constants to nothing, since a graph has no other way to give them.
    """
    _, _, points = standing()
    values = torch.zeros(39, 5)
    centre = torch.tensor([70.0, 80])  # of the hips
    values[:33, :2] = points[0] - centre + SIDE / 2 + torch.tensor(shift)
    values[33:35, :2] = torch.tensor([[SIDE / 2, SIDE / 2], [SIDE / 2, SIDE / 2 - SIDE / 2 / poses.CROP_MARGIN]])
    values[:, 3] = 9
    layers = [
        GraphLayer("mean", ("x",), "colour"),
        GraphLayer("convolution", ("colour", "none", "values"), "points", {"stride": 1, "same": False}),
        GraphLayer("flatten", ("points",), "flat"),
        GraphLayer("convolution", ("colour", "one", "score"), "scored", {"stride": 1, "same": False}),
        GraphLayer("flatten", ("scored",), "scores"),
        GraphLayer("convolution", ("x", "one", "mask"), "masks", {"stride": 1, "same": False}),
    ]
    weights = {
        "none": torch.zeros(195, 3, 1, 1),
        "values": values.flatten(),
        "one": torch.zeros(1, 3, 1, 1),
        "score": torch.tensor([score]),
        "mask": torch.tensor([20.0]),
    }
    return Graph(layers, ["x"], ["flat", "scores", "masks"], weights)


def look(shift: tuple[float, float] = (0, 0), score: float = 1.0) -> Poses:
    """MoveNet's person with the body circle of radius SIDE / 2.5, so that squares have the image's scale."""
    joints, scores, _ = standing()
    joints[0, 15] = torch.tensor([70.0, 80 + SIDE / 2.5 / 1.15])  # the joint that is furthest from the hips
    return poses.refine_poses(blazepose(shift, score), torch.rand(3, 200, 160), joints, scores)


def test_both_networks_agree_on_a_person() -> None:
    seen = look()
    _, _, points = standing()
    assert seen.landmarks.shape == (1, 33, 2) and torch.allclose(seen.landmarks, points, atol=0.1)
    assert seen.agreement[0, 15] == 0 and seen.agreement[0, :15].min() > 0.99  # the ankle was moved
    assert seen.masks.shape == (1, SIDE, SIDE) and seen.visibility.min() > 0.99


@pytest.mark.parametrize(("shift", "score"), [((16.0, 0.0), 1.0), ((0.0, 0.0), 0.4)])
def test_people_that_blazepose_sees_elsewhere_or_not_at_all_are_dropped(
    shift: tuple[float, float], score: float
) -> None:
    assert len(look((8.0, 0.0)).landmarks) == 1
    seen = look(shift, score)
    assert seen.landmarks.shape == (0, 33, 2) and seen.masks.shape == (0, SIDE, SIDE)
    assert people.joint_heat_maps(seen, (200, 160), (10, 8)).shape == (33, 10, 8)
    assert not people.person_mask(seen, torch.ones(SIDE, SIDE), (200, 160)).any()


def test_heat_peaks_at_the_joint_with_the_weight_as_its_height() -> None:
    """Cells of 10 px, so the deviation is one cell (0.08 of 40 px is less)."""
    joints, scores, points = standing()
    points[0, 0] = torch.tensor([44.5, 24.5])  # the middle of the cell in column 4, row 2
    points[0, 1] = torch.tensor([-3.0, 24])  # outside
    agree = torch.full((1, 17), 0.5)
    visible = torch.full((1, 33), 0.8)
    person = Poses(joints, scores, agree, points, visible, torch.zeros(1, SIDE, SIDE), torch.zeros(1, 2, 3))
    heat = people.joint_heat_maps(person, (200, 160), (20, 16))
    assert heat[0].argmax().item() == 2 * 16 + 4 and heat[0, 2, 4].item() == pytest.approx(0.4)
    assert heat[0, 2, 5].item() == pytest.approx(0.4 * math.exp(-0.5))
    assert not heat[1].any() and heat.amin() >= 0
    large = Poses(joints * 10, scores, agree, points, visible, person.masks, person.image_from_square)
    assert people.joint_heat_maps(large, (200, 160), (20, 16))[0, 2, 5].item() == pytest.approx(
        0.4 * math.exp(-((10 / 32) ** 2) / 2)  # the body is 400 px, 0.08 of it 32 px
    )


def test_the_mask_needs_a_person_and_is_halved_without_a_foreground() -> None:
    """A square over the image's left half; the foreground is its upper half."""
    seen = look()
    half = torch.tensor([[[0.5, 0, 0], [0, 1, 0]]])
    person = Poses(**{**vars(seen), "image_from_square": half, "masks": torch.ones(1, SIDE, SIDE)})
    foreground = torch.zeros(SIDE, SIDE)
    foreground[: SIDE // 2] = 1
    mask = people.person_mask(person, foreground, (SIDE, SIDE))
    assert mask[: SIDE // 2, : SIDE // 2].eq(1).all() and mask[SIDE // 2 :, : SIDE // 2].eq(0.5).all()
    assert mask[:, SIDE // 2 + 1 :].eq(0).all()


def constant(channels: int, value: float) -> Graph:
    """A made-up network: 3 channels in, `channels` out, the same everywhere, at a quarter of the size."""
    layers = [GraphLayer("convolution", ("x", "none", "value"), "y", {"stride": 4, "same": True})]
    weights = {"none": torch.zeros(channels, 3, 1, 1), "value": torch.full((channels,), value)}
    return Graph(layers, ["x"], ["y"], weights)


def empty_movenet() -> Graph:
    layers, weights = [], {}
    for number, (channels, value) in enumerate(((1, -9), (2, 0), (2, 0), (17, -9), (34, 0), (34, 0))):
        weights |= {f"w{number}": torch.zeros(channels, 3, 1, 1), f"b{number}": torch.full((channels,), float(value))}
        layers.append(
            GraphLayer("convolution", ("x", f"w{number}", f"b{number}"), f"y{number}", {"stride": 4, "same": True})
        )
    return Graph(layers, ["x"], [layer.output for layer in layers], weights)


def baked(path: Path, **networks: Graph) -> Path:
    graphs = {"movenet": empty_movenet(), "blazepose": blazepose(), "selfie": constant(1, 1.0)} | networks
    tensors = {f"{name}/{key}": graph.weight(key) for name, graph in graphs.items() for key in graph.weights}
    described = {name: describe(graph) for name, graph in graphs.items()}
    weight_files.write_safetensors(path, tensors, {people.METADATA: json.dumps({"graphs": described})})
    return path


def test_a_baked_file_makes_the_teacher(tmp_path: Path) -> None:
    path = baked(tmp_path / "made.safetensors", selfie=Graph([], ["x"], ["x"], {}))
    teacher = load_teacher(f"people={path}", CPU, torch.bfloat16)
    assert teacher.widths == {"patch": 34} and teacher.source.name == "people"
    tokens = teacher(torch.rand(2, 3, 56, 84), (4, 6))
    assert tokens["patch"].shape == (2, 24, 34) and not tokens["patch"].any()  # nobody there, whatever selfie says


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"selfie": Graph([], ["x"], ["x", "x"], {})}, "selfie has 1 inputs and 2 outputs"),
        ({"blazepose": constant(195, 0)}, "blazepose has 1 inputs and 1 outputs"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, networks: dict[str, Graph], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"not what weights/build/bake_people_teacher\.py writes \({message}\)"):
        people.load(str(baked(tmp_path / "made.safetensors", **networks)), CPU, torch.float32)
    weight_files.write_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="run it again"):
        people.load(str(tmp_path / "other.safetensors"), CPU, torch.float32)


def test_a_missing_file_says_how_to_make_it() -> None:
    with pytest.raises(WeightsMissing, match=r"run 'python weights/build/bake_people_teacher\.py'.*npm.*Apache-2\.0"):
        load_teacher("people", CPU)


@pytest.fixture(scope="module")
def real() -> people.PeopleTeacher:
    if not BAKED.is_file():
        pytest.skip("needs the file of weights/build/bake_people_teacher.py (set DUNE_PEOPLE_TEACHER)")
    teacher = load_teacher(f"people={BAKED}", CPU)
    assert isinstance(teacher, people.PeopleTeacher)
    return teacher


def photo() -> torch.Tensor:
    image = read_photo(Path(__file__).resolve().parents[2] / "examples/photos/astronaut.png").rgb
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def test_the_astronaut_is_found(real: people.PeopleTeacher) -> None:
    """Joints as seen by eye in the picture of 512 px: nose, eyes (the left one at its right), shoulders."""
    found = poses.estimate_poses(real.movenet, real.blazepose, photo())[0]
    assert len(found.landmarks) == 1
    by_eye = {0: (223, 127), 2: (244, 108), 5: (203, 108), 11: (305, 245), 12: (115, 245)}
    for joint, place in by_eye.items():
        assert (found.landmarks[0, joint] - torch.tensor(place)).norm() < 25, (joint, found.landmarks[0, joint])
    assert found.agreement[0, :7].min() > 0.9


def test_the_map_follows_the_picture(real: people.PeopleTeacher) -> None:
    """Mirrored, left and right change places; face and suit are person, rocket and flag are not."""
    image = photo()
    straight, mirrored = (real(x, (32, 32))["patch"][0].T.reshape(34, 32, 32) for x in (image, image.flip(-1)))
    row, column = divmod(int(straight[0].argmax()), 32)
    assert abs(row - 7.5) <= 2 and abs(column - 13.5) <= 2 and straight[0].max() > 0.6
    mask = straight[33]
    assert mask[6:10, 12:15].min() > 0.9 and mask[20:28, 6:12].min() > 0.9 and mask[:8, 22:].max() < 0.1
    assert (mask - mirrored[33].flip(-1)).abs().mean() < 0.05
    for left, right in ((11, 12), (2, 5)):
        assert (straight[left].argmax() - mirrored[right].flip(-1).argmax()).abs() <= 33


def test_a_picture_without_people_gives_zeros(real: people.PeopleTeacher) -> None:
    steps = torch.linspace(0, 1, 224)
    sky = torch.stack([steps.expand(224, 224) * 0.3, steps[:, None].expand(224, 224) * 0.6, torch.ones(224, 224)])
    assert not real(sky[None], (16, 16))["patch"].any()
