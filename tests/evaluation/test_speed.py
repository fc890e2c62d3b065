"""The speed measurements: operations counted right, threads put back."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dune_cli import runtime
from dune_cli.evaluation import speed


def test_operations_are_counted_with_attention() -> None:
    x, w = torch.randn(50, 30), torch.randn(40, 30)
    assert speed.count_flop(lambda: F.linear(x, w)) == 2 * 50 * 30 * 40
    image, kernel = torch.randn(1, 4, 10, 12), torch.randn(6, 4, 3, 3)
    assert speed.count_flop(lambda: F.conv2d(image, kernel, padding=1)) == 2 * 6 * 4 * 9 * 120
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 24, 8)
    with torch.inference_mode():
        counted = speed.count_flop(lambda: F.scaled_dot_product_attention(q, k, k))
    assert counted == 2 * 2 * (2 * 3 * 20 * 24 * 8)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with runtime.use_torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
