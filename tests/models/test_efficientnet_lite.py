"""EfficientNet-Lite2 is timm's, to the bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from dune_cli.models.efficientnet_lite import LiteNetwork
from dune_cli.models.stems import LITE_STAGES

NAME = "tf_efficientnet_lite2"


def pair(**timms: object) -> tuple[LiteNetwork, torch.nn.Module]:
    """Ours with the weights of timm's, whose batch norms do something."""
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, pretrained=False, **timms).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    ours = LiteNetwork(None if "features_only" in timms else 7).eval()
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    if "features_only" in timms:
        del ours.blocks[5:], theirs.blocks[5:]
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("size", [(64, 64), (65, 90), (33, 47), (97, 32)])
def test_maps_are_timms(size: tuple[int, int]) -> None:
    ours, theirs = pair(features_only=True, out_indices=(0, 1, 2, 3))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        maps = ours.maps(images)
        for stage, expected in zip(LITE_STAGES, theirs(images)):
            torch.testing.assert_close(maps[stage], expected, rtol=0, atol=0)


def test_logits_are_timms() -> None:
    ours, theirs = pair(num_classes=7)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_random_weights_keep_the_scale() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        found = LiteNetwork(7).eval()(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert found.shape == (1, 7) and torch.isfinite(found).all() and found.std() > 1e-4


def test_dune_imports_no_timm_for_it() -> None:
    code = """
import sys
import torch
from dune_cli.models.stems import LiteStem
with torch.device("meta"):
    LiteStem()
LiteStem()
assert not {"timm", "torchvision", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
