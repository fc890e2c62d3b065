"""Laws of dune-mini and of its stems."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dune_cli.models.dune_mini import PARTS, MiniConfig, MiniEncoder
from dune_cli.models.stems import ConvStem, ToTokens

SMALL = {"width": 64, "depth": 2, "heads": 1, "hidden": 64, "conv": (8, 16, 16), "conv_blocks": (1, 1)}
STEMS = [("conv",), ("xfeat",), ("lite",), ("xfeat", "lite"), ("conv", "xfeat", "lite")]


def mini(parts: tuple[str, ...]) -> MiniEncoder:
    torch.manual_seed(0)
    return MiniEncoder(MiniConfig(parts=parts, **SMALL))


@pytest.mark.parametrize("parts", STEMS, ids="+".join)
def test_maps_and_tokens_have_the_shapes_that_the_parts_promise(parts: tuple[str, ...]) -> None:
    encoder = mini(parts).eval()
    images = torch.rand(2, 3, 48, 80)
    with torch.inference_mode():
        pyramid = encoder.pyramid(images)
        assert torch.equal(pyramid.tokens.patches, encoder(images).patches)
    assert tuple(pyramid.tokens.patches.shape) == (2, 15, 64)
    assert tuple(pyramid.maps) == parts
    for part in parts:
        channels = encoder.stem[part].channels
        assert {s: tuple(m.shape) for s, m in pyramid.maps[part].items()} == {
            stride: (2, count, 48 // stride, 80 // stride) for stride, count in channels.items()
        }


@pytest.mark.parametrize("parts", STEMS, ids="+".join)
def test_a_photo_does_not_depend_on_its_neighbours(parts: tuple[str, ...]) -> None:
    encoder = mini(parts).train()  # in training, too: no batch statistics
    images = torch.rand(3, 3, 32, 48)
    with torch.inference_mode():
        together, alone = encoder(images), encoder(images[1:2])
    assert torch.allclose(together.patches[1], alone.patches[0], atol=1e-5)


def test_open_parts_are_never_trained() -> None:
    encoder = mini(("conv", "xfeat", "lite")).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    encoder(torch.rand(2, 3, 32, 32)).patches.square().mean().backward()
    optimizer.step()
    changed = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])]
    assert {part for part in PARTS if any(key.startswith(f"stem.{part}.") for key in changed)} == {"conv"}
    assert not any(part.training for name in ("xfeat", "lite") for part in encoder.stem[name].modules())


def test_open_parts_stay_float32_in_autocast() -> None:
    encoder = mini(("xfeat", "lite")).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        plain = encoder.pyramid(images).maps
        with torch.autocast("cpu", torch.bfloat16):
            cast = encoder.pyramid(images).maps
    for part, maps in plain.items():
        assert all(torch.equal(values, cast[part][stride]) for stride, values in maps.items())


def test_every_map_reaches_the_tokens() -> None:
    parts = {name: (ConvStem((8, 8, 8), (0, 0)) if name == "conv" else PARTS[name]()) for name in PARTS}
    to_tokens = ToTokens(parts, 16)
    assert set(to_tokens.projs) == {"conv8", "xfeat8", "lite8", "lite16"}
    images = torch.rand(1, 3, 32, 32)
    maps = {name: part(images) for name, part in parts.items()}
    tokens = to_tokens(maps)
    for key in to_tokens.projs:
        saved = to_tokens.projs[key].weight.detach().clone()
        nn.init.zeros_(to_tokens.projs[key].weight)
        assert not torch.allclose(to_tokens(maps), tokens)
        to_tokens.projs[key].weight.data.copy_(saved)


def test_an_affine_change_of_brightness_leaves_xfeat_alone() -> None:
    encoder = mini(("xfeat",)).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(encoder(images).patches, encoder(0.5 * images + 0.2).patches, atol=1e-3)
