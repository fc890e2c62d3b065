"""Depth Anything 3's backbone as a teacher."""

from __future__ import annotations

import pytest
import torch

from dune_cli.errors import CheckpointError
from dune_cli.teachers import registry
from support.da3_files import shared_da3
from support.dinov2_head_files import write_small_set
from support.published_files import make_image


@pytest.mark.parametrize(("name", "width"), [("da3_small", 768), ("da3_metric_mini", 384)])
def test_tokens_of_each_image_alone(name: str, width: int) -> None:
    teacher = registry.load_teacher(f"da3={shared_da3(name)}", torch.device("cpu"))
    images = torch.cat([make_image([1, 3, 60, 80], seed) for seed in range(3)])
    tokens = teacher(images, (3, 4))
    assert teacher.widths == {"patch": width} and tokens["patch"].shape == (3, 12, width)
    for index in range(3):
        alone = teacher(images[index : index + 1], (3, 4))["patch"]
        assert torch.allclose(tokens["patch"][index : index + 1], alone, atol=1e-5)
    assert registry.weights_of("da3") == "da3-base"


def test_other_files_are_refused(tmp_path) -> None:
    folder = write_small_set(tmp_path)
    with pytest.raises(CheckpointError, match="is no model of Depth Anything 3; the teacher da3 takes da3-small"):
        registry.load_teacher(f"da3={folder / 'dinov2_vits14_nyu_dpt_head.pth'}", torch.device("cpu"))
