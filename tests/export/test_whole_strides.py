"""Convolutions without the padding that no output reads."""

from __future__ import annotations

import torch

from dune_cli.export.whole_strides import WholeStrideConv2d, with_whole_strides
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder


def test_every_part_of_the_stem_gives_the_same_maps() -> None:
    torch.manual_seed(0)
    config = MiniConfig(width=64, depth=1, heads=1, hidden=64, parts=("conv", "lite", "xfeat"), conv=(8, 16, 16))
    encoder = MiniEncoder(config).eval().requires_grad_(False)
    changed = with_whole_strides(encoder)
    assert not any(isinstance(part, WholeStrideConv2d) for part in encoder.modules())
    # conv: strides 2, 4 and 8; lite: 2, 4, 8 and 16; xfeat: 2, 4, 8 and 16, not 32
    assert sum(isinstance(part, WholeStrideConv2d) for part in changed.modules()) == 11
    images = torch.rand(2, 3, 48, 80)
    before, after = encoder.pyramid(images), changed.pyramid(images)
    assert before.maps.keys() == after.maps.keys()
    for name, maps in before.maps.items():
        for stride, values in maps.items():
            torch.testing.assert_close(after.maps[name][stride], values)
    torch.testing.assert_close(after.tokens.patches, before.tokens.patches)


def test_a_model_without_a_stem_is_not_copied() -> None:
    model = torch.nn.Conv2d(3, 4, 3, 2, 1)
    assert with_whole_strides(model) is model
