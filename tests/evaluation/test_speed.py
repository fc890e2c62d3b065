"""The speed measurements: operations counted right, parts that add up, matches that agree."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dune_cli import runtime
from dune_cli.evaluation import speed
from dune_cli.evaluation import speed as matching_speed
from support import small_networks


def test_operations_are_counted_with_attention() -> None:
    x, w = torch.randn(50, 30), torch.randn(40, 30)
    assert speed.count_flop(lambda: F.linear(x, w)) == 2 * 50 * 30 * 40
    image, kernel = torch.randn(1, 4, 10, 12), torch.randn(6, 4, 3, 3)
    assert speed.count_flop(lambda: F.conv2d(image, kernel, padding=1)) == 2 * 6 * 4 * 9 * 120
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 24, 8)
    with torch.inference_mode():
        counted = speed.count_flop(lambda: F.scaled_dot_product_attention(q, k, k))
    assert counted == 2 * 2 * (2 * 3 * 20 * 24 * 8)


@pytest.mark.parametrize(
    "side, patch, expected", [(518, 14, (392, 518)), (512, 16, (384, 512)), (60, 14, (42, 56)), (14, 14, (14, 14))]
)
def test_input_sizes_are_whole_patches(side: int, patch: int, expected: tuple[int, int]) -> None:
    assert speed.input_size(side, patch) == expected


def test_a_run_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks.install(monkeypatch)
    with speed.threads(1):
        found = speed.measure_networks("dune-vits", 56, "cpu", rounds=1)
    assert (found.device, found.threads, found.input_hw) == ("cpu", 1, (42, 56))
    dtypes = {"float32"} | ({"bfloat16"} if runtime.cpu_has_fast_bfloat16() else set())
    assert {(row.network, row.dtype) for row in found.networks} == {
        (n, d) for n in ("encoder", "two-view") for d in dtypes
    }
    assert set(found.peak) == dtypes
    top = max(found.peak["float32"].values())
    for row in found.networks:
        assert row.share == pytest.approx(row.gflop / row.seconds / top)
        assert set(row.parts) == (
            {"encoder"} if row.network == "encoder" else {"encoder", "decoder", "point heads", "descriptor heads"}
        )
    encoder, pair = (next(row for row in found.networks if row.network == name) for name in ("encoder", "two-view"))
    # 12 blocks of a ViT-S on 1 + 4 + 12 tokens, its patch embedding on 12
    tokens, width = 17, 384
    blocks = 12 * (2 * tokens * width**2 * 12 + 4 * tokens**2 * width)
    assert encoder.gflop * 1e9 == pytest.approx(blocks + 2 * 12 * width * 588)
    assert pair.gflop > 2 * encoder.gflop


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with speed.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_three_ways_of_matching_agree() -> None:
    found = matching_speed.measure_matching((20, 30), 24, rounds=1)
    assert found.identical
    assert 300 < found.matches < 600
    assert found.kd_tree_gain == pytest.approx(found.kd_tree_seconds / found.seconds)


def test_disagreement_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = matching_speed.kd_tree
    monkeypatch.setattr(matching_speed, "kd_tree", lambda a, b: tuple(part[1:] for part in right(a, b)))
    assert not matching_speed.measure_matching((10, 12), 24, rounds=1).identical
