"""The teachers fastdepth and mosaic: their tokens out of the networks' maps, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dune_cli.checkpoints.weight_files import write_safetensors
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.models.fastdepth import FastDepth
from dune_cli.models.mosaic import CLASSES, Mosaic, MosaicOutput
from dune_cli.provenance import Source
from dune_cli.teachers.fastdepth import FastDepthTeacher, sure_depth
from dune_cli.teachers.mosaic import MosaicTeacher
from dune_cli.teachers.registry import load_teacher

CPU = torch.device("cpu")


def _file(net: nn.Module, path: Path) -> Path:
    write_safetensors(path, net.state_dict(), {})
    return path


class SeesOneClass(nn.Module):
    """In the place of MOSAIC: every pixel is of one class."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.number = CLASSES.index(name)

    def forward(self, images: torch.Tensor) -> MosaicOutput:
        logits = torch.zeros(len(images), len(CLASSES), images.shape[-2] // 4, images.shape[-1] // 4)
        logits[:, self.number] = 5
        return MosaicOutput(logits, logits)


def _fastdepth(scene: str, metres: float) -> FastDepthTeacher:
    torch.manual_seed(0)
    net = FastDepth().eval()
    nn.init.constant_(net.head.bias, metres)
    nn.init.zeros_(net.head.weight)
    gate = MosaicTeacher(SeesOneClass(scene), Source("gate"))
    return FastDepthTeacher(net, Source("fastdepth"), gate).eval()


def test_fastdepth_tokens_are_log_depth_and_features_of_both_directions() -> None:
    teacher = _fastdepth("wall", 2.0)
    images = torch.rand(2, 3, 224, 336)
    tokens = teacher(images, (14, 21))
    assert tokens["patch"].shape == (2, 14 * 21, 17) and tokens["cls"].shape == (2, 17)
    assert tokens["patch"][..., 0] == pytest.approx(torch.full((2, 14 * 21), 2.0).log())
    mirrored = teacher(images.flip(-1), (14, 21))["patch"].view(2, 14, 21, 17).flip(2).reshape(2, -1, 17)
    torch.testing.assert_close(mirrored, tokens["patch"], atol=1e-5, rtol=1e-4)
    assert teacher.gate is not None and teacher.gate.name == "gate"


@pytest.mark.parametrize(("scene", "metres", "valid"), [("wall", 2.0, 1), ("sky", 2.0, 0), ("wall", 30.0, 0)])
def test_fastdepth_is_valid_in_rooms_at_the_depths_that_it_has_learned(scene: str, metres: float, valid: int) -> None:
    found = _fastdepth(scene, metres)(torch.rand(2, 3, 224, 224), (14, 14))["valid"]
    assert found.shape == (2, 196) and (found == valid).all()


def test_fastdepth_is_not_valid_where_the_mirror_image_has_another_depth() -> None:
    plain = torch.tensor([[2.0, 2.0, 2.0]])
    depth, sure = sure_depth(plain, torch.tensor([[2.0, 2.2, 2.5]]))
    assert sure.tolist() == [[True, True, False]] and depth[0, 1] == pytest.approx(4.4**0.5)


def test_mosaic_tokens_are_logits_and_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Mosaic().eval()
    teacher = load_teacher(f"mosaic={_file(net, tmp_path / 'm.safetensors')}", CPU)
    images = torch.rand(1, 3, 512, 512)
    tokens = teacher(images, (32, 32))
    with torch.inference_mode():
        found = net(images)
    expected = nn.functional.avg_pool2d(found.logits, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens["patch"][..., :32], expected)
    torch.testing.assert_close(tokens["patch"][..., 32:], found.features.flatten(2).transpose(1, 2))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = _file(nn.Linear(2, 2), tmp_path / "other.safetensors")
    for name, words in (("fastdepth", "does not fit FastDepth"), ("mosaic", "does not fit MOSAIC")):
        with pytest.raises(CheckpointError, match=words):
            load_teacher(f"{name}={path}", CPU)
        with pytest.raises(WeightsMissing, match=r"bake_open_networks\.py"):
            load_teacher(name, CPU)
