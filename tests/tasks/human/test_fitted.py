"""People by fitted bodies, from Python: joints, scores, heights, and bodies without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.bodies.found_joints import FoundJoints, fit_confidence
from dune_cli.errors import UserError
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.joint_files import JointSet
from dune_cli.io.photos import Photo, read_photo
from dune_cli.models.people_poses import BLAZEPOSE_NAMES
from dune_cli.tasks import human
from dune_cli.tasks.human import FittedHumanModel
from support.anny_poses import K, posed_people


@pytest.fixture(scope="module")
def model() -> FittedHumanModel:
    found = human.load_human("dune-people", device="cpu")
    assert isinstance(found, FittedHumanModel)
    return found


def seen(model: FittedHumanModel, people: int) -> FoundJoints:
    """What networks without errors would see of posed people."""
    from dune_cli.bodies.skeleton import INDEX

    posed = posed_people(model.fitter.landmark_skeleton, people, seed=1)
    own = [INDEX.get(name, INDEX["nose"]) for name in BLAZEPOSE_NAMES]
    ones = np.ones((people, 33))
    visible = ones * [name in INDEX for name in BLAZEPOSE_NAMES]
    return FoundJoints(ones[:, 0], ones[:, 0], posed.pixels[:, own], visible, visible, posed.landmarks[:, own])


def test_bodies_lie_on_their_joints(model: FittedHumanModel) -> None:
    joints = seen(model, 5)
    people = model.fit(joints, K, (640, 480))
    assert len(people) == 5
    for person in people:
        assert person.fit_residual_px < 2 and person.fit_confidence > 0.9
        assert person.vertices.shape == (model.vertex_count, 3)
        assert torch.allclose(person.translation, person.joints3d[0])
        assert person.landmarks2d.shape == (28, 2)
    assert model.fit(joints[np.zeros(0, int)], K, (640, 480)) == []


def test_a_height_each(model: FittedHumanModel) -> None:
    joints = seen(model, 3)
    people = model.fit(joints, K, (640, 480), (1.5, 1.7, 1.9))
    assert [person.height for person in people] == pytest.approx([1.5, 1.7, 1.9], abs=0.02)
    with pytest.raises(UserError, match="2 heights were given, and 3 people"):
        model.fit(joints, K, (640, 480), (1.5, 1.7))


def test_joints_outside_the_photo_are_not_seen(model: FittedHumanModel) -> None:
    (person,) = model.fit(seen(model, 1), K, (640, 5))
    assert person.joints_seen == () and max(person.joint_confidence.values()) == 0


def test_the_confidence_of_a_fit_falls_with_its_cost() -> None:
    values = [fit_confidence(cost, 0.9) for cost in (0, 30, 50, 80, 1e6)]
    assert values == sorted(values, reverse=True) and values[2] == pytest.approx(0.45) and values[4] < 1e-9


def test_images_of_any_size(model: FittedHumanModel, example_photos: Path) -> None:
    rgb = read_photo(example_photos / "astronaut.png").rgb
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255
    ((person,), nobody) = model(torch.stack([image, torch.zeros_like(image)]))
    assert nobody == [] and 180 < person.head_px[0] < 270
    assert model(image[None], min_score=0.99) == [[]]
    photo = Photo(Path("a.png"), rgb, "")
    ((again,)) = human.predict(model, photo, min_score=0.3).people
    assert torch.allclose(again.joints2d, person.joints2d, atol=0.01)


def test_a_size_is_told_by_bones() -> None:
    """3-D joints of a child: the body is as small as they are."""
    fitter = human.load_fitter()
    skeleton = fitter.joint_skeleton
    posed = posed_people(skeleton, 2, seed=2)
    from dune_cli.bodies.skeleton import LANDMARKS

    small = JointSet(LANDMARKS, posed.landmarks * 0.7, np.ones((2, len(LANDMARKS))))
    photo = Photo(Path("a.png"), np.zeros((480, 640, 3), np.uint8), "")
    found = human.predict_from_joints(fitter, photo, small, PhotoCamera.of_matrix(K, "given", 640, 480))
    assert found.assumed_height is None
    wanted = posed.stature * 0.7
    assert [person.height for person in found.people] == pytest.approx(wanted, rel=0.08)


def test_joints_of_a_photo_with_a_lens() -> None:
    """The same body as of a pinhole camera's joints, with its pixels where the lens has them."""
    fitter = human.load_fitter()
    names = ("nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_knee", "right_knee")
    points = [(120, 100), (150, 150), (90, 150), (140, 260), (100, 260), (142, 330), (96, 330)]
    lens = Camera("OPENCV_FISHEYE", (300.0, 301.0, 310.0, 240.0, 0.03, -0.01, 0.001, 0.0), 640, 480)
    straight = JointSet(names, np.array([points], float), np.ones((1, len(names))))
    photo = Photo(Path("a.png"), np.zeros((480, 640, 3), np.uint8), "")
    pinhole = PhotoCamera.of_matrix(lens.K, "given", 640, 480)
    (plain,) = human.predict_from_joints(fitter, photo, straight, pinhole).people
    bent = replace(straight, values=lens.distort(straight.values))
    found = human.predict_from_joints(fitter, photo, bent, PhotoCamera(lens, "given", lens_known=True))
    (person,) = found.people
    assert found.lens == lens
    np.testing.assert_allclose(person.joints3d, plain.joints3d, atol=1e-4)
    np.testing.assert_allclose(person.joints2d, lens.distort(plain.joints2d.double().numpy()), atol=0.05)
    np.testing.assert_allclose(person.landmarks2d, lens.distort(plain.landmarks2d), atol=0.05)
    assert 0 < person.fit_residual_px < plain.fit_residual_px + 1


def test_people_with_few_joints_are_left_out() -> None:
    fitter = human.load_fitter()
    confidence = np.zeros((2, 5))
    confidence[0] = 1
    names = ("nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip")
    values = np.array([[(320, 100), (350, 150), (290, 150), (340, 260), (300, 260)]] * 2, float)
    photo = Photo(Path("a.png"), np.zeros((480, 640, 3), np.uint8), "")
    (person,) = human.predict_from_joints(fitter, photo, JointSet(names, values, confidence)).people
    assert person.joints_seen == names
    with pytest.raises(UserError, match="the body knows 0, and needs 4"):
        human.predict_from_joints(fitter, photo, JointSet(("tail",), values[:, :1], confidence[:, :1]))
