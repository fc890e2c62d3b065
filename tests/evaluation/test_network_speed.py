"""The speed of networks: real sizes, operations and parts that add up, a number of people that is kept."""

from __future__ import annotations

import pytest
import torch

from dune_cli import runtime
from dune_cli.commands import bench
from dune_cli.evaluation import network_speed
from support import small_networks


def vit_flop(width: int, depth: int, tokens: int) -> float:
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * (tokens - 1) * width * 588


@pytest.mark.parametrize(
    "side, patch, expected", [(518, 14, (392, 518)), (512, 16, (384, 512)), (60, 14, (42, 56)), (14, 14, (14, 14))]
)
def test_input_sizes_are_whole_patches(side: int, patch: int, expected: tuple[int, int]) -> None:
    assert network_speed.input_size(side, patch) == expected


def test_a_run_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    with runtime.use_torch_threads(1):
        result = network_speed.measure_pair("dune-vits", 56, "cpu", rounds=1)
    assert (result.device, result.threads, result.input_hw) == ("cpu", 1, (42, 56))
    dtypes = {"float32"} | ({"bfloat16"} if runtime.cpu_has_fast_bfloat16() else set())
    assert {(row.network, row.dtype) for row in result.networks} == {
        (n, d) for n in ("encoder", "two-view") for d in dtypes
    }
    assert set(result.peak) == dtypes
    top = max(result.peak["float32"].values())
    for row in result.networks:
        assert row.share == pytest.approx(row.gflop / row.seconds / top)
        assert set(row.parts) == (
            {"encoder"} if row.network == "encoder" else {"encoder", "decoder", "point heads", "descriptor heads"}
        )
    encoder, pair = (next(row for row in result.networks if row.network == name) for name in ("encoder", "two-view"))
    # 12 blocks of a ViT-S on 1 + 4 + 12 tokens, its patch embedding on 12
    tokens, width = 17, 384
    blocks = 12 * (2 * tokens * width**2 * 12 + 4 * tokens**2 * width)
    assert encoder.gflop * 1e9 == pytest.approx(blocks + 2 * 12 * width * 588)
    assert pair.gflop > 2 * encoder.gflop


def test_a_run_of_a_depth_model(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    with runtime.use_torch_threads(1):
        result = network_speed.measure_task("dinov2-vits14-nyu-dpt", 112, "cpu", rounds=1)
    dtypes = {"float32"} | ({"bfloat16"} if runtime.cpu_has_fast_bfloat16() else set())
    assert (result.model, result.input_hw, result.threads, result.people) == (
        "dinov2-vits14-nyu-dpt",
        (84, 112),
        1,
        None,
    )
    assert {(row.network, row.dtype) for row in result.networks} == {
        (n, d) for n in ("encoder", "network") for d in dtypes
    }
    assert set(result.peak) == dtypes
    assert set(result.fast_gain) == (set() if len(dtypes) == 1 else {"encoder", "network"})
    top = max(result.peak["float32"].values())
    rows = {(row.network, row.dtype): row for row in result.networks}
    for row in rows.values():
        assert row.share == pytest.approx(row.gflop / row.seconds / top)
    assert rows["encoder", "float32"].gflop * 1e9 == pytest.approx(vit_flop(384, 12, 6 * 8 + 1))
    assert rows["network", "float32"].gflop > 1.5 * rows["encoder", "float32"].gflop


@pytest.mark.parametrize("name", ["multihmr-672-s", "multihmr-672-l-anny"])
def test_people_are_found_with_random_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_speed, "VITS", {"s": (96, 2, 3), "l": (96, 2, 3)})
    network = network_speed.random_human(name.replace("672", "140"))
    calls, people = network_speed._human_calls(network, torch.rand(1, 3, 140, 140))
    assert 1 <= people <= 8
    with torch.inference_mode():
        (result,) = calls["network"]()
        assert len(result) == people
        assert result.rotations.isfinite().all()
        assert ("network and bodies" in calls) == name.endswith("anny")
        if "network and bodies" in calls:
            (bodies,) = calls["network and bodies"]()
            assert len(bodies) == people
            assert bodies[0].vertices.isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("dinov2-vits14-nyu-dpt", 22e6), ("multihmr-672-s", 22e6), ("multihmr-672-b", 86e6), ("mast3r-vitl", 304e6)],
)
def test_sizes_are_the_published_ones(name: str, parameters: float, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    make = network_speed.random_human if name in network_speed.HUMAN_MODELS else network_speed.random_depth
    model = make(name)
    encoder = model.model.encoder if name == "mast3r-vitl" else getattr(model, "encoder", None) or model.backbone
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(parameters, rel=0.02)


def test_the_command_knows_all_models() -> None:
    assert set(bench.MODELS["depth"]) == set(network_speed.DEPTH_MODELS)
    assert set(bench.MODELS["human"]) == set(network_speed.HUMAN_MODELS)
    assert set(bench.MODELS["pair"]) == set(network_speed.ARCHITECTURES)


def test_a_human_model_has_its_own_size() -> None:
    with pytest.raises(ValueError, match="its own size only"):
        network_speed.measure_task("multihmr-672-s", 224)
