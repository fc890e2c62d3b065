"""People as bodies: parity of the posed Anny, parameters that give the mesh again, pixels of the original photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.errors import UserError, WeightsMissing
from dune_cli.geometry.camera_models import Camera
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photos import Photo
from dune_cli.io.undistortion import StraightPhoto
from dune_cli.tasks.human import HumanModel, Person, PhotoPeople, cameras, load_human, predict, select
from support.body_rotations import from_rotvec
from support.human_files import ANNY, SMPLX, human_image, min_score, write_human, write_small, write_smplx
from support.published_files import Fixture, deviation

FAR = 1e-3


@pytest.fixture(scope="module")
def official_anny(tmp_path_factory: pytest.TempPathFactory) -> HumanModel:
    return load_human(write_human(tmp_path_factory.mktemp("anny") / "multiHMR_672_L_anny.pt", ANNY), device="cpu")


def test_the_anny_fixture_down_to_the_vertices(official_anny: HumanModel) -> None:
    fixture = Fixture(ANNY)
    expected = fixture.expected
    (people,) = official_anny(human_image(ANNY), None, min_score(ANNY))
    assert len(people) == len(expected["transl"])
    vertices = torch.stack([person.vertices for person in people])
    assert vertices.shape[1:] == (19158, 3)
    assert deviation(vertices[:, :: fixture.config["v3d_stride"]], expected["v3d"]) < FAR
    assert deviation(torch.stack([person.joints3d for person in people]), expected["j3d"]) < FAR
    assert deviation(torch.stack([person.joints2d for person in people]), expected["j2d"]) < FAR
    assert deviation(torch.stack([person.head for person in people]), expected["transl"]) < FAR
    assert deviation(torch.stack([person.rotvec for person in people]), expected["rotvec"]) < 1e-4
    assert deviation(torch.stack([person.head_px for person in people]), expected["loc"]) < FAR
    names = ("gender", "age", "muscle", "weight", "height", "proportions")
    shape = torch.stack([torch.stack([person.shape[name] for name in names]) for person in people])
    assert deviation(shape, expected["shape"][:, :6]) < 1e-4


@pytest.fixture(scope="module", params=[SMPLX, ANNY])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HumanModel:
    folder = tmp_path_factory.mktemp("small")
    return load_human(write_small(folder / "small.pt", request.param), write_smplx(folder), device="cpu")


def _images(size: int, *seeds: int) -> torch.Tensor:
    return torch.cat([torch.nn.functional.interpolate(human_image(ANNY, seed), (size, size)) for seed in seeds])


def _rotations(person: Person) -> torch.Tensor:
    return from_rotvec(person.rotvec)[None]


def test_parameters_alone_give_the_mesh_again(small: HumanModel) -> None:
    people = [person for image in small(_images(112, 1, 2), None, 0.3) for person in image]
    assert len(people) > 3
    for person in people:
        shape = torch.cat([values.reshape(-1) for values in person.shape.values()])[None]
        expression = None if person.expression is None else person.expression[None]
        posed = small.pose(_rotations(person), shape, expression)
        far = float(person.head.norm())
        tolerance = 1e-4 + 3e-7 * far  # a float32 holds 24 bits
        assert torch.allclose(posed.vertices[0] + person.offset, person.vertices, atol=tolerance)
        assert torch.allclose(posed.joints[0] + person.offset, person.joints3d, atol=tolerance)
        assert torch.allclose(person.joints3d[small.body.head], person.head, atol=1e-6 * far)
        assert torch.equal(person.joints3d[0], person.translation)


def test_the_head_is_seen_where_it_was_detected(small: HumanModel) -> None:
    K = torch.tensor([[[130.0, 0, 50], [0, 120, 60], [0, 0, 1]]])
    (people,) = small(_images(112, 3), K, 0.3)
    assert people
    for person in people:
        projected = person.head @ K[0].T
        assert torch.allclose(projected[:2] / projected[2], person.head_px, atol=1e-2)
        assert torch.allclose(person.joints2d[small.body.head], person.head_px, atol=1e-2)


def test_smplx_is_posed_about_its_pelvis_with_hands_and_jaw_in_their_places(tmp_path: Path) -> None:
    model = load_human(write_small(tmp_path / "small.pt", SMPLX), write_smplx(tmp_path), device="cpu")
    names = model.rotation_names
    assert len(names) == 53
    assert (names[0], names[21], names[22], names[37], names[52]) == (
        "pelvis",
        "right_wrist",
        "left_index1",
        "right_index1",
        "jaw",
    )
    vectors = 0.4 * torch.randn(1, 53, 3, generator=torch.Generator().manual_seed(0))
    betas = torch.randn(1, 10, generator=torch.Generator().manual_seed(1))
    posed = model.pose(from_rotvec(vectors), betas)
    unturned = model.pose(from_rotvec(vectors * (torch.arange(53) > 0)[None, :, None]), betas)
    pelvis = unturned.joints[:, :1]
    turned = (unturned.vertices - pelvis) @ from_rotvec(vectors[:, 0]).mT + pelvis
    assert torch.allclose(posed.vertices, turned, atol=1e-5)
    jaw_only = torch.zeros(1, 53, 3)
    jaw_only[0, 52, 0] = 0.3
    moved = (model.pose(from_rotvec(jaw_only), betas).joints - model.pose(from_rotvec(0 * jaw_only), betas).joints)[0]
    assert moved.abs().max() < 1e-6  # nothing hangs on the jaw
    index_only = torch.zeros(1, 53, 3)
    index_only[0, 37, 1] = 0.5
    moved = (model.pose(from_rotvec(index_only), betas).joints - model.pose(from_rotvec(0 * jaw_only), betas).joints)[0]
    stirred = {model.body.joint_names[j] for j in moved.norm(dim=-1).gt(1e-4).nonzero()[:, 0]}
    assert stirred == {"right_index2", "right_index3"}


def test_a_batch_gives_what_single_images_give(small: HumanModel) -> None:
    images = _images(112, 1, 2)
    together = small(images, None, 0.3)
    for k, people in enumerate(together):
        (alone,) = small(images[k : k + 1], None, 0.3)
        assert len(people) == len(alone)
        for person, other in zip(people, alone):
            assert torch.allclose(person.joints2d, other.joints2d, atol=2e-2)
            assert torch.allclose(person.rotvec.cos(), other.rotvec.cos(), atol=1e-3)


def _photo(width: int, height: int) -> Photo:
    rgb = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Photo(Path(f"{width}x{height}.png"), rgb.repeat(8, 0).repeat(8, 1)[:height, :width].copy(), "0" * 64)


@pytest.mark.parametrize(("width", "height"), [(400, 224), (224, 400), (333, 251), (56, 56)])
def test_all_pixels_are_those_of_the_photo(small: HumanModel, width: int, height: int) -> None:
    photo = _photo(width, height)
    K = np.array([[310.0, 0, 0.4 * width], [0, 305, 0.6 * height], [0, 0, 1]])
    for given in (PhotoCamera.of_matrix(K, "given", width, height), None):
        detected = predict(small, photo, given, 0.3)
        assert detected.people
        if given is not None:
            assert np.array_equal(detected.K, K)
        without = "predicted" if small.network.predicts_camera else "default"
        assert detected.camera_source == ("given" if given else without)
        for person in detected.people:
            joints = person.joints3d.double().numpy()
            projected = joints @ detected.K.T
            ahead = joints[:, 2] > 1e-3
            pixels = projected[ahead, :2] / projected[ahead, 2:]
            assert np.allclose(person.joints2d.numpy()[ahead], pixels, rtol=1e-4, atol=1e-2)
            if person.head[2] > 1e-3:
                head = person.head.double().numpy() @ detected.K.T
                assert np.allclose(person.head_px.numpy(), head[:2] / head[2], atol=2e-2)
            # the detected cell lies inside the photo's part of the square, give or take the offset and a cell
            cell = 14 * max(width, height) / small.size_px
            assert -6 * cell < person.head_px[0] < width + 6 * cell
            surface = person.vertices[small.body.surface].double().numpy()
            surface = surface[surface[:, 2] > 1e-3]
            projected = surface @ detected.K.T
            pixels = np.vstack([projected[:, :2] / projected[:, 2:], person.head_px.numpy()[None]])
            box = np.concatenate([pixels.min(0), pixels.max(0)])
            assert np.allclose(person.bbox_xyxy.numpy(), box, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("model", ["FULL_OPENCV", "OPENCV_FISHEYE"])
def test_pixels_of_a_photo_with_a_lens_are_those_of_the_lens(small: HumanModel, model: str) -> None:
    terms = {"FULL_OPENCV": (-0.2, 0.05, 0.002, -0.001, 0.01, 0.02, 0, 0), "OPENCV_FISHEYE": (0.02, -0.01, 0.001, 0)}
    lens = Camera(model, (230.0, 231.0, 190.0, 120.0, *terms[model]), 400, 224)
    photo = _photo(400, 224)
    found = predict(small, photo, PhotoCamera(lens, "given", lens_known=True), 0.3)
    assert found.people and found.lens == lens and found.photo is photo and np.array_equal(found.K, lens.K)
    straight = StraightPhoto.of(lens)
    undistorted = replace(photo, rgb=straight.image(photo.rgb))
    plain = predict(small, undistorted, PhotoCamera.of_matrix(straight.K, "given", 400, 224), 0.3)
    for person, other in zip(found.people, plain.people, strict=True):
        assert torch.equal(person.vertices, other.vertices)
        joints = person.joints3d.double().numpy()
        np.testing.assert_allclose(person.joints2d, lens.project(joints), atol=1e-3)
        in_photo = straight.pixels_in_photo(other.joints2d.double().numpy())
        ahead = np.isfinite(in_photo).all(-1) & (joints[:, 2] > 0.05)
        np.testing.assert_allclose(person.joints2d.numpy()[ahead], in_photo[ahead], rtol=1e-3, atol=0.05)
        assert person.bbox_xyxy[0] <= person.head_px[0] <= person.bbox_xyxy[2]


def test_the_unknown_camera_has_its_centre_in_the_photos_middle(small: HumanModel) -> None:
    for width, height in ((400, 200), (200, 400)):  # 112 x 56 in the square: equal borders
        K = predict(small, _photo(width, height)).K
        assert np.allclose(K[:2, 2], [(width - 1) / 2, (height - 1) / 2], atol=1e-3)
        if not small.network.predicts_camera:
            assert K[0, 0] == pytest.approx(400 / 2 / np.tan(np.radians(30)), rel=1e-4)


def test_known_cameras_are_kept_and_unknown_ones_left_to_the_network() -> None:
    plain, with_exif = _photo(400, 224), Photo(Path("b.jpg"), np.zeros((224, 400, 3), np.uint8), "0" * 64, 350.0)
    assert cameras([plain], None, None) == [None]
    (camera,) = cameras([with_exif], None, None)
    assert (camera.K[0, 0], camera.source) == (350.0, "exif")
    (camera,) = cameras([plain], "300,301,200,112", None)
    assert (camera.K[1, 1], camera.source) == (301.0, "given")


def _person(box: list[float]) -> Person:
    empty = torch.zeros(3)
    return Person(0.5, torch.tensor(box), empty, empty, empty, empty, empty, {}, None, empty, empty, empty)


def test_whom_select_keeps() -> None:
    photo = _photo(100, 100)
    boxes = [[0, 0, 30, 30], [-900, 0, 10, 99], [10, 10, 90, 90], [20, 20, 60, 60]]
    everybody = PhotoPeople(photo, tuple(_person(box) for box in boxes), np.eye(3), "given")

    def selected(which: str) -> list[int]:
        return [boxes.index(person.bbox_xyxy.tolist()) for person in select(everybody, which).people]

    assert selected("all") == [0, 1, 2, 3]
    assert selected("largest") == [2]
    assert selected("3") == [1, 2, 3]  # what lies outside the photo does not count
    assert selected("9") == [0, 1, 2, 3]
    for wrong in ("0", "-1", "nearest", "1.5", ""):
        with pytest.raises(UserError, match="allowed: all, largest, or a number of people"):
            select(everybody, wrong)


def test_a_missing_smplx_body_is_told_with_its_address(tmp_path: Path) -> None:
    path = write_small(tmp_path / "small.pt", SMPLX)
    with pytest.raises(WeightsMissing, match=r"SMPL-X.*smpl-x\.is\.tue\.mpg\.de.*--body-models"):
        load_human(path, tmp_path, device="cpu")
