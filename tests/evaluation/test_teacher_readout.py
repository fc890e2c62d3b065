"""The linear read-out of teachers: what a linear map finds, and what it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli.errors import UserError
from dune_cli.evaluation.features import FeatureSource, FeatureTokens
from dune_cli.evaluation.teacher_readout import linear_readout
from dune_cli.provenance import Source
from dune_cli.teachers.teacher import PATCH, VALID, Teacher

CELL_PX = 16
TO_TEACHER = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def cell_colours(images: torch.Tensor) -> torch.Tensor:
    """(B, h, w, 3) mean colours of the cells."""
    return torch.nn.functional.avg_pool2d(images, CELL_PX).permute(0, 2, 3, 1)


class LinearTeacher(Teacher):
    """A linear map of the cells' colours; the gate shuts the left half out, where the tokens are nonsense."""

    name = "linear"
    widths = {PATCH: 5}  # noqa: RUF012
    source = Source("linear")

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gate = Source("gate") if gated else None

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        found = cell_colours(images) @ TO_TEACHER + 3
        if self.gate is None:
            return {PATCH: found.flatten(1, 2)}
        valid = torch.ones(found.shape[:3])
        valid[:, :, : grid[1] // 2] = 0
        noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(len(images)))
        return {PATCH: torch.where(valid[..., None] > 0, found, 100 * noise).flatten(1, 2), VALID: valid.flatten(1)}


def column(name: str) -> FeatureSource:
    """Features: the cells' colours, noise, or a constant."""
    generator = torch.Generator().manual_seed(0)

    def encode(images: torch.Tensor) -> FeatureTokens:
        colours = cell_colours(images)
        noise = torch.randn(colours.shape, generator=generator)
        patches = {"colours": colours, "noise": noise, "constant": torch.ones_like(colours)}[name]
        return FeatureTokens(patches.mean((1, 2)), patches)

    return FeatureSource(name, Source(name), CELL_PX, encode)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((128, 128)).save(path)
    return paths


@pytest.mark.parametrize("gated", [False, True])
def test_a_linear_map_is_found_and_noise_predicts_nothing(photos: list[Path], gated: bool) -> None:
    columns = [column(name) for name in ("colours", "noise", "constant")]
    colours, noise, constant = linear_readout(columns, {"linear": LinearTeacher(gated)}, photos, 128, 4)["linear"]
    assert colours > 0.99 and abs(noise) < 0.05 and abs(constant) < 0.05


def test_too_few_photos(photos: list[Path]) -> None:
    with pytest.raises(UserError, match="4 photos are too few"):
        linear_readout([column("noise")], {"linear": LinearTeacher(False)}, photos[:4], 128, 4)
