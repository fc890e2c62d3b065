"""Graphs as data: every operation against hand-computed numbers, refusals, and the way through JSON."""

from __future__ import annotations

import json

import pytest
import torch

from dune_cli.models import graph
from dune_cli.models.graph import Graph, GraphLayer, build, describe, same_padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding"),
    [
        (4, 3, 2, 1, (0, 1)),
        (5, 3, 2, 1, (1, 1)),
        (5, 2, 1, 1, (0, 1)),
        (6, 1, 2, 1, (0, 0)),
        (8, 3, 1, 2, (2, 2)),
        (7, 5, 3, 1, (2, 2)),
        (6, 5, 3, 1, (1, 1)),
    ],
)
def test_same_padding_is_tensorflows(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]
) -> None:
    """ceil(size / stride) outputs; the odd pixel after. Cases worked out by hand."""
    assert same_padding(size, kernel, stride, dilation) == padding
    covered = size + sum(padding) - (kernel - 1) * dilation - 1
    assert covered // stride + 1 == -(-size // stride)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def test_convolution_pads_behind_and_activates() -> None:
    """Width 4, kernel (1, 2, 3), stride 2: columns 0-2 and 2-3 with a zero behind, plus the bias, cut at 6."""
    kernel, bias = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3), torch.tensor([-10.0])
    x = row(1, 2, 3, 4)
    assert graph.convolution(x, kernel, bias, stride=2, same=True).flatten().tolist() == [4, 1]
    assert graph.convolution(x, kernel, stride=2, same=False).flatten().tolist() == [14]
    cut = graph.convolution(x, kernel, bias + 4, stride=2, same=True, activation="relu6")
    assert cut.flatten().tolist() == [6, 5]


def test_depthwise_convolution_keeps_channels_apart() -> None:
    x = torch.tensor([[1.0, 2], [10, 20]]).view(1, 2, 1, 2)
    kernel = torch.tensor([1.0, 100]).view(2, 1, 1, 1)
    assert graph.convolution(x, kernel, stride=1, same=True, groups=2).flatten().tolist() == [1, 2, 1000, 2000]


def test_transposed_convolution_writes_blocks() -> None:
    kernel = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2)
    out = graph.transposed_convolution(row(1, 10), kernel, torch.tensor([0.5]), stride=2)
    assert out[0, 0].tolist() == [[1.5, 2.5, 10.5, 20.5], [3.5, 4.5, 30.5, 40.5]]
    with pytest.raises(ValueError, match="only equal ones"):
        graph.transposed_convolution(row(1), torch.ones(1, 1, 3, 3), torch.zeros(1), stride=2)


def test_max_pool_is_not_won_by_the_padding() -> None:
    assert graph.max_pool(row(-5, -1, -3), kernel=2, stride=1, same=True).flatten().tolist() == [-1, -1, -3]
    assert graph.max_pool(torch.tensor([[[[1.0, 7], [3, 2]]]]), kernel=2, stride=2, same=False).flatten() == 7


def test_enlarging_has_its_pixel_centres_at_halves() -> None:
    assert graph.enlarge(row(0, 4), factor=2)[0, 0].tolist() == [[0, 1, 3, 4]] * 2


def test_the_rest() -> None:
    assert graph.pad(row(1), edges=[1, 2, 0, 1])[0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    picture = torch.arange(8.0).view(1, 2, 2, 2)  # channel-major
    assert graph.flatten(picture).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    assert graph.mean(picture).tolist() == [[[[1.5]], [[5.5]]]]
    assert graph.add(row(1, -8), row(2, 3), activation="relu").flatten().tolist() == [3, 0]
    assert graph.multiply(picture, torch.tensor([1.0, 0]).view(1, 2, 1, 1)).flatten().tolist() == [0, 1, 2, 3] + [0] * 4
    assert graph.activate(row(-4, 0, 1, 5), activation="hard_swish").flatten().tolist() == pytest.approx(
        [0, 0, 2 / 3, 5]
    )
    assert graph.activate(row(0), activation="sigmoid").item() == 0.5


def tiny() -> Graph:
    layers = [
        GraphLayer("convolution", ("x", "kernel.0"), "a", {"stride": 1, "same": True}),
        GraphLayer("activate", ("a",), "b", {"activation": "relu"}),
        GraphLayer("add", ("a", "b", "x"), "c"),
        GraphLayer("mean", ("c",), "d"),
    ]
    return Graph(layers, ["x"], ["d", "b"], {"kernel.0": torch.tensor([-1.0, 0, 1], dtype=torch.half).view(1, 1, 1, 3)})


def test_layers_run_in_turn_and_outputs_come_in_order() -> None:
    """x = 1 3 2: right minus left = 3 1 -3; its positive part 3 1 0; the sum of all three 7 5 -1."""
    mean, positive = tiny()(row(1, 3, 2))
    assert positive.flatten().tolist() == [3, 1, 0]
    assert mean.item() == pytest.approx(11 / 3)


def test_activations_are_dropped_after_their_last_use() -> None:
    assert [sorted(names) for names in tiny().released] == [[], [], ["a", "x"], ["c"]]  # b is an output


def test_through_json_and_back() -> None:
    first = tiny()
    again = build(json.loads(json.dumps(describe(first))), {"kernel.0": first.weight("kernel.0")})
    x = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(first(x), again(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [["think", ["x"], "y", {}]]}, "unknown operation 'think'; known: convolution"),
        ({"layers": [["mean", ["z"], "y", {}]]}, "needs 'z', which nothing before it gives"),
        ({"layers": [["mean", ["x"], "y", {"over": 1}]]}, "layer 'y', mean: .*over"),
        ({"layers": [["enlarge", ["x"], "y", {}]]}, "layer 'y', enlarge: .*factor"),
        ({"layers": [["mean", ["x"], "y"]]}, "not enough values"),
        ({"layers": 3}, "not the description of a graph"),
        ({"outputs": ["q"]}, "no layer gives the output 'q'"),
    ],
)
def test_what_is_no_graph_is_refused(change: dict[str, object], message: str) -> None:
    whole = {"inputs": ["x"], "outputs": ["y"], "layers": [["mean", ["x"], "y", {}]]}
    assert build(whole, {})(row(1, 3))[0].item() == 2
    with pytest.raises(ValueError, match=message):
        build(whole | change, {})
