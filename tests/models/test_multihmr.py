"""Both published heads against their fixtures (float32), and what docs/models/multihmr.md says beyond the fixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dune_cli.checkpoints.adapters import multihmr, multihmr_anny
from dune_cli.models.multihmr_anny import MultiHmrAnny, sine_positions
from dune_cli.models.multihmr_common import Detections, suppress, to_rotvec
from dune_cli.models.multihmr_smplx import MultiHmrSmplx, distance
from support.human_files import ANNY, SMPLX, human_image, human_state, min_score, official_tree, small_state
from support.published_files import Fixture, deviation

SAFE = 1e-4
FAR = 1e-3  # metres and pixels of people up to 100 m away


@pytest.fixture(scope="module")
def smplx() -> MultiHmrSmplx:
    return multihmr.build(official_tree(SMPLX, human_state(SMPLX))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def anny() -> MultiHmrAnny:
    return multihmr_anny.build(official_tree(ANNY, human_state(ANNY))).eval().requires_grad_(False)


def test_smplx_fixture(smplx: MultiHmrSmplx) -> None:
    fixture = Fixture(SMPLX)
    expected = fixture.expected
    image, K = human_image(SMPLX), torch.tensor([fixture.config["K"]])
    tokens = smplx.backbone(image).patches
    raw = smplx.scores(tokens)
    assert deviation(tokens[0], expected["patch_tokens"]) < SAFE
    assert deviation(raw[0], expected["scores_raw"]) < SAFE
    assert deviation(suppress(raw.unflatten(-1, (16, 16)))[0], expected["scores_nms"]) < SAFE

    (people,) = smplx(image, K, min_score(SMPLX))
    assert people.cells.T.tolist() == expected["idx"][1:3].tolist()
    assert deviation(people.rotations[:, :1], expected["global_orient"]) < SAFE
    assert deviation(people.rotations[:, 1:], expected["body_pose"]) < SAFE
    assert deviation(to_rotvec(people.rotations), expected["rotvec"]) < SAFE
    assert deviation(people.shape, expected["betas"]) < SAFE
    assert deviation(people.expression, expected["expression"]) < SAFE
    assert deviation(people.camera, expected["cam"]) < SAFE
    assert deviation(people.head_px, expected["loc"]) < SAFE
    assert deviation(people.head[:, 2:], expected["dist"]) < SAFE


def test_anny_fixture(anny: MultiHmrAnny) -> None:
    expected = Fixture(ANNY).expected
    tokens = anny.encoder.backbone(human_image(ANNY))
    assert deviation(anny.encoder.scores(tokens.patches).unflatten(-1, (16, 16))[0], expected["scores"]) < SAFE
    assert deviation(anny.encoder.field_of_view(tokens)[:, None], expected["fov"]) < SAFE

    (people,) = anny(human_image(ANNY), None, min_score(ANNY))
    assert len(people) == len(expected["loc"])
    assert deviation(people.head_px, expected["loc"]) < FAR
    assert deviation(people.head, expected["transl"]) < FAR
    assert deviation(people.K, expected["K_regressed"][0]) < FAR
    assert deviation(people.rotations, expected["rotmat"]) < SAFE
    assert deviation(to_rotvec(people.rotations), expected["rotvec"]) < SAFE
    assert deviation(people.shape, expected["shape"]) < SAFE


def test_the_positions_of_cells_are_the_published_ones() -> None:
    config = Fixture(ANNY).config
    positions = sine_positions(16, 512)
    assert torch.allclose(positions[1, :8], torch.tensor(config["dec_pos_emb_first_row"]), atol=1e-6)
    assert torch.equal(positions[16, 256:], positions[1, :256])  # row 1, column 0


def test_the_distance_formula() -> None:
    assert distance(torch.tensor([1.0]), 240.0, 224).item() == pytest.approx(3.445879, abs=1e-5)
    assert distance(torch.tensor([-50.0, 50.0]), 240.0, 224).tolist() == [0.0, 50.0]


def test_a_given_camera_replaces_the_predicted_one(anny: MultiHmrAnny) -> None:
    K = torch.tensor([[[300.0, 0, 100], [0, 310, 120], [0, 0, 1]]])
    (own,), (given,) = anny(human_image(ANNY), None, 0.7), anny(human_image(ANNY), K, 0.7)
    assert torch.equal(given.K, K[0])
    by_pixel = {tuple(cell): k for k, cell in enumerate(own.cells.tolist())}
    order = [by_pixel[tuple(cell)] for cell in given.cells.tolist()]
    assert torch.allclose(given.head[:, 2], own.head[order, 2] * 300 / own.K[0, 0], rtol=1e-4)
    projected = given.head @ K[0].T
    assert torch.allclose(projected[:, :2] / projected[:, 2:], given.head_px, atol=1e-2)


def test_smplx_without_a_camera_assumes_60_degrees(smplx: MultiHmrSmplx) -> None:
    (people,) = smplx(human_image(SMPLX))
    expected = [[193.98969, 0, 112], [0, 193.98969, 112], [0, 0, 1]]
    assert torch.allclose(people.K, torch.tensor(expected), atol=1e-4)


def test_the_nearest_person_comes_first(anny: MultiHmrAnny) -> None:
    (people,) = anny(human_image(ANNY), None, 0.3)
    assert len(people) > 5
    assert people.head[:, 2].diff().min() >= 0


def test_useless_rotations_are_the_identity(anny: MultiHmrAnny) -> None:
    (people,) = anny(human_image(ANNY), None, 0.5)
    useful = torch.tensor(Fixture(ANNY).config["useful_rotmat"], dtype=torch.bool)
    eye = torch.eye(3).expand(len(people), int((~useful).sum()), 3, 3)
    assert torch.equal(people.rotations[:, ~useful], eye)
    assert (people.rotations[:, useful] - torch.eye(3)).abs().amax((-1, -2)).min() > 1e-3


def _build(name: str, **sizes: int) -> Any:
    adapter = multihmr_anny if name == ANNY else multihmr
    return adapter.build({"model_state_dict": small_state(name, **sizes)}).eval().requires_grad_(False)


def _same(a: Detections, b: Detections, tolerance: float) -> bool:
    pairs = [(a.scores, b.scores), (a.head_px, b.head_px), (a.rotations, b.rotations), (a.shape, b.shape)]
    pairs += [(a.head / a.head[:, 2:], b.head / b.head[:, 2:]), (a.head[:, 2].log(), b.head[:, 2].log())]
    return torch.equal(a.cells, b.cells) and all(torch.allclose(x, y, atol=tolerance) for x, y in pairs)


@pytest.mark.parametrize("name", [SMPLX, ANNY])
def test_people_see_only_their_own_image(name: str) -> None:
    model = _build(name)
    size = model.size_px
    assert size == 112
    images = torch.cat([torch.nn.functional.interpolate(human_image(name, seed), (size, size)) for seed in (1, 2, 3)])
    K = torch.tensor([[[f, 0, 60], [0, f, 50], [0, 0, 1.0]] for f in (90.0, 110.0, 150.0)])
    for camera in (None, K):
        together = model(images, camera, 0.3)
        for k, people in enumerate(together):
            (alone,) = model(images[k : k + 1], None if camera is None else camera[k : k + 1], 0.3)
            assert len(people) > 1
            assert _same(people, alone, 2e-4)


@pytest.mark.parametrize("name", [SMPLX, ANNY])
def test_an_image_without_people_gives_none(name: str) -> None:
    (people,) = _build(name)(torch.zeros(1, 3, 112, 112), None, 1.0)
    bones = 163 if name == ANNY else 53
    assert len(people) == 0
    assert people.rotations.shape == (0, bones, 3, 3)
    assert people.head.shape == (0, 3)


@pytest.mark.parametrize("name", [SMPLX, ANNY])
def test_other_sizes_are_refused_with_the_size(name: str) -> None:
    model = _build(name)
    with pytest.raises(ValueError, match=r"\(B, 3, 112, 112\).*\(1, 3, 126, 112\)"):
        model(torch.zeros(1, 3, 126, 112))
    with pytest.raises(ValueError, match=r"K must be \(2, 3, 3\)"):
        model(torch.zeros(2, 3, 112, 112), torch.eye(3)[None])


def test_only_the_maximum_of_a_neighbourhood_stays() -> None:
    scores = torch.tensor([[[0.9, 0.1, 0.3, 0.2], [0.2, 0.3, 0.1, 0.4], [0.4, 0.4, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    kept = torch.zeros(1, 4, 4)
    kept[0, 0, 0], kept[0, 1, 3], kept[0, 2, 0], kept[0, 2, 1] = 0.9, 0.4, 0.4, 0.4
    assert torch.equal(suppress(scores), kept)
