"""People as bodies: parity of the posed Anny, parameters that give the mesh again, pixels of the original photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from human_files import ANNY, SMPLX, human_image, min_score, write_human, write_small
from published_files import Fixture, deviation

from dune_cli.models.human.rotations import from_rotvec
from dune_cli.tasks.human import HumanModel, Person, load_human

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
