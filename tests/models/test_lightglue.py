"""The packed LightGlue answers as the plain one does, by torch's own products and by oneDNN's."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.nn import functional as F

from dune_cli.models import cpu_products, lightglue_inference
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
    torch.manual_seed(5)
    x, weight, bias = torch.randn(40, 24), torch.randn(10, 24), torch.randn(10)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_products.linear(x, weight, bias), F.linear(x, weight, bias))


def _message(q: torch.Tensor, k: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (q.double() @ k.double().T * log(2)).softmax(-1) @ values.double().T


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("largest", [3.0, 20.0, 400.0])  # logits; of base 2 a float32 holds powers up to 127
def test_attention_is_a_softmax_of_base_2(largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "ROWS", 16)
    torch.manual_seed(6)
    k0, k1 = torch.randn(40, 8), torch.randn(48, 8)
    scale = (largest / (k0 @ k1.T).abs().max()).sqrt()
    k0, k1 = k0 * scale, k1 * scale
    counts = 37, 45
    k0[counts[0] :] *= 4  # those that do not count have larger logits
    k1[counts[1] :] *= 4
    values0, values1 = torch.randn(8, 40), torch.randn(8, 48)
    values0[:, counts[0] :], values1[:, counts[1] :] = 0, 0
    one_way, out0, out1 = torch.empty(40, 8), torch.empty(40, 8), torch.empty(48, 8)
    with torch.inference_mode():
        cpu_products.attend(k0, k1, values1, counts[1], one_way)
        cpu_products.attend_both(k0, k1, (values0, values1), counts, (out0, out1))
    expected0 = _message(k0, k1[: counts[1]], values1[:, : counts[1]]).float()
    expected1 = _message(k1, k0[: counts[0]], values0[:, : counts[0]]).float()
    for found, expected, count in ((one_way, expected0, 37), (out0, expected0, 37), (out1, expected1, 45)):
        torch.testing.assert_close(found[:count], expected[:count], atol=1e-4, rtol=1e-3)


def test_in_bfloat16_nearly_all_matches_are_the_same() -> None:
    network = _network(0.0, 0.0)
    generator = torch.Generator().manual_seed(7)
    x, positions = torch.randn(200, CONFIG.width, generator=generator), torch.rand(200, 2, generator=generator)
    images = x, x + 0.05, positions, positions * 0.9
    with torch.inference_mode():
        exact, quick = (
            PackedLightGlue(network, dtype).match(*images, 0.0) for dtype in (torch.float32, torch.bfloat16)
        )
    pairs = [set(zip(found[0].tolist(), found[1].tolist())) for found in (exact, quick)]
    assert len(pairs[0] & pairs[1]) > 0.9 * len(pairs[0]) > 50


def test_answers_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightglue_inference, "BLOCK", 128)
    network, before = PackedLightGlue(_network(0.9, 0.3)), torch.get_num_threads()
    torch.manual_seed(8)
    images = torch.randn(300, CONFIG.width), torch.randn(200, CONFIG.width), torch.rand(300, 2), torch.rand(200, 2)
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(network.match(*images, 0.0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(found[0][0]) > 5
    assert all(torch.equal(one, three) for one, three in zip(*found))


def test_gradients_go_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)
    weight = torch.randn(3, 4, requires_grad=True)
    cpu_products.linear(torch.randn(2, 4), weight).sum().backward()
    assert weight.grad is not None
