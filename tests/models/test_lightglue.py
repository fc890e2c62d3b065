"""The packed LightGlue answers as the plain one does, by torch's own products and by oneDNN's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dune_cli.models import cpu_products
from dune_cli.models.lightglue import LightGlue, LightGlueConfig
from dune_cli.models.lightglue_inference import PackedLightGlue

CONFIG = LightGlueConfig(inputs=12, width=32, layers=4, heads=2, prune_below=0.4)

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)], ids=["torch", "onednn"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that multiplies."""
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: request.param)


def _network(depth_confidence: float, prune_below: float) -> LightGlue:
    torch.manual_seed(3)
    config = LightGlueConfig(**{**vars(CONFIG), "prune_below": prune_below})
    network = LightGlue(config, depth_confidence).eval().requires_grad_(False)
    for head in network.log_assignment:  # so that some points are matchable and others are not
        head.matchability.weight.mul_(6)
        head.final_proj.weight.mul_(8)
    return network


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(("depth_confidence", "prune_below"), [(0.0, 0.0), (0.0, 0.3), (0.3, 0.45), (0.95, 0.45)])
def test_packed_network_matches_as_the_plain_one(depth_confidence: float, prune_below: float) -> None:
    network = _network(depth_confidence, prune_below)
    generator = torch.Generator().manual_seed(4)
    descriptors = torch.randn(90, CONFIG.inputs, generator=generator)
    positions = torch.rand(90, 2, generator=generator) * 2 - 1
    second = torch.randperm(90, generator=generator)[:70]
    images = (descriptors, descriptors[second] + 0.05, positions, positions[second] * 0.9)
    packed = PackedLightGlue(network)
    with torch.inference_mode():
        expected, found = (
            made.match(*(made.input_proj(x) for x in images[:2]), *images[2:], 0.0) for made in (network, packed)
        )
    assert len(expected[0]) > 5
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-3)


def test_points_that_are_all_left_out_match_nothing() -> None:
    network = _network(0.0, 1.0)
    images = torch.randn(9, CONFIG.width), torch.randn(5, CONFIG.width), torch.rand(9, 2), torch.rand(5, 2)
    with torch.inference_mode():
        for made in (network, PackedLightGlue(network)):
            assert [len(part) for part in made.match(*images, 0.0)] == [0, 0, 0]


@needs_onednn
def test_products_by_onednn_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(cpu_products, "ROWS", 16)
    torch.manual_seed(5)
    x, weight, bias = torch.randn(40, 24), torch.randn(10, 24), torch.randn(10)
    q, k, v = torch.randn(2, 40, 8), torch.randn(2, 30, 8), torch.randn(2, 30, 8)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_products.linear(x, weight, bias), F.linear(x, weight, bias))
        expected = F.scaled_dot_product_attention(q[None], k[None, :, :27], v[None, :, :27])[0]
        torch.testing.assert_close(cpu_products.attention(q, k, v, 27), expected.transpose(0, 1).flatten(1))


def test_gradients_go_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)
    weight = torch.randn(3, 4, requires_grad=True)
    cpu_products.linear(torch.randn(2, 4), weight).sum().backward()
    assert weight.grad is not None
