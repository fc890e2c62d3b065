"""A network as data: a list of named layers, run one after the other. For small converted convolutional networks.

The layers are TensorFlow's, with its "same" padding and its resizing, on tensors (B, C, H, W). The operations' names
are part of the files that weights/build/bake_people_teacher.py writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class GraphLayer:
    """One step: `operation` of OPERATIONS, the names of its inputs (activations and weights) and of its output."""

    operation: str
    inputs: tuple[str, ...]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Pixels before and after, such that the output has ceil(size / stride): TensorFlow's SAME, the odd one after."""
    covered = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1
    missing = max(covered - size, 0)
    return missing // 2, missing - missing // 2


def _pad_same(x: torch.Tensor, kernel: Sequence[int], stride: int, dilation: int = 1, value: float = 0) -> torch.Tensor:
    (top, bottom), (left, right) = (same_padding(n, k, stride, dilation) for n, k in zip(x.shape[2:], kernel))
    return F.pad(x, (left, right, top, bottom), value=value) if top + bottom + left + right else x


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int,
    same: bool,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
) -> torch.Tensor:
    """weight (out, in / groups, kh, kw); "same" or no padding."""
    if same:
        x = _pad_same(x, weight.shape[2:], stride, dilation)
    return ACTIVATIONS[activation](F.conv2d(x, weight, bias, stride, 0, dilation, groups))


def transposed_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, stride: int) -> torch.Tensor:
    """weight (in, out, k, k) with k = stride: every pixel becomes a k x k block, and blocks do not overlap."""
    if tuple(weight.shape[2:]) != (stride, stride):
        raise ValueError(f"a {tuple(weight.shape[2:])} kernel at stride {stride}: only equal ones are known here")
    return F.conv_transpose2d(x, weight, bias, stride)


def max_pool(x: torch.Tensor, *, kernel: int, stride: int, same: bool) -> torch.Tensor:
    """The largest of kernel x kernel pixels; "same" pads by minus infinity."""
    if same:
        x = _pad_same(x, (kernel, kernel), stride, value=float("-inf"))
    return F.max_pool2d(x, kernel, stride)


def add(*terms: torch.Tensor, activation: str = "none") -> torch.Tensor:
    """The sum, broadcast."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return ACTIVATIONS[activation](total)


def multiply(x: torch.Tensor, y: torch.Tensor, *, activation: str = "none") -> torch.Tensor:
    """The product, broadcast."""
    return ACTIVATIONS[activation](x * y)


def activate(x: torch.Tensor, *, activation: str) -> torch.Tensor:
    """One of ACTIVATIONS."""
    return ACTIVATIONS[activation](x)


def pad(x: torch.Tensor, *, edges: Sequence[int]) -> torch.Tensor:
    """Zeros around: `edges` = left, right, top, bottom."""
    return F.pad(x, tuple(edges))


def enlarge(x: torch.Tensor, *, factor: int) -> torch.Tensor:
    """Bilinear, pixel centres at halves (TensorFlow's half_pixel_centers)."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def mean(x: torch.Tensor) -> torch.Tensor:
    """Over the map: (B, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def flatten(x: torch.Tensor) -> torch.Tensor:
    """(B, H·W·C), the channel fastest, as TensorFlow lays them out."""
    return x.permute(0, 2, 3, 1).flatten(1)


OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    operation.__name__: operation
    for operation in (
        convolution,
        transposed_convolution,
        max_pool,
        add,
        multiply,
        activate,
        pad,
        enlarge,
        mean,
        flatten,
    )
}


class Graph(nn.Module):
    """Layers and their weights. Every activation is released after its last use.

    layers in an order in which they can run; `inputs` and `outputs` name activations; `weights` by name, kept as
    float32. Raises ValueError for an unknown operation, options that it does not take, a name that nothing gives.
    """

    def __init__(
        self,
        layers: Sequence[GraphLayer],
        inputs: Sequence[str],
        outputs: Sequence[str],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.layers, self.inputs, self.outputs = tuple(layers), tuple(inputs), tuple(outputs)
        self.weights: dict[str, str] = {}  # name -> buffer, whose name may hold no dots
        for name, value in weights.items():
            self.weights[name] = f"weight_{len(self.weights)}"
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format  # a sixth faster on a CPU
            self.register_buffer(self.weights[name], value.float().contiguous(memory_format=layout))
        known = {*self.inputs, *self.weights}
        for layer in self.layers:
            if layer.operation not in OPERATIONS:
                raise ValueError(f"unknown operation {layer.operation!r}; known: {', '.join(OPERATIONS)}")
            try:
                inspect.signature(OPERATIONS[layer.operation]).bind(*layer.inputs, **layer.options)
            except TypeError as error:
                raise ValueError(f"layer {layer.output!r}, {layer.operation}: {error}") from error
            if missing := [name for name in layer.inputs if name not in known]:
                raise ValueError(f"layer {layer.output!r} needs {missing[0]!r}, which nothing before it gives")
            known.add(layer.output)
        if missing := [name for name in self.outputs if name not in known]:
            raise ValueError(f"no layer gives the output {missing[0]!r}")
        last = {name: index for index, layer in enumerate(self.layers) for name in layer.inputs}
        self.released: list[list[str]] = [[] for _ in self.layers]
        for name, index in last.items():
            if name not in self.weights and name not in self.outputs:
                self.released[index].append(name)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, in the order of `outputs`, for (B, C, H, W) inputs in the order of `inputs`."""
        ordered = [value.contiguous(memory_format=torch.channels_last) for value in inputs]
        values = dict(zip(self.inputs, ordered, strict=True))
        for layer, released in zip(self.layers, self.released):
            arguments = [values[name] if name in values else self.weight(name) for name in layer.inputs]
            values[layer.output] = OPERATIONS[layer.operation](*arguments, **layer.options)
            for name in released:
                del values[name]
        return tuple(values[name] for name in self.outputs)

    def weight(self, name: str) -> torch.Tensor:
        """A weight by the name that it was given with."""
        return self.get_buffer(self.weights[name])


def describe(graph: Graph) -> dict[str, Any]:
    """Everything but the weights, for JSON; `build` reads it."""
    layers = [[layer.operation, list(layer.inputs), layer.output, dict(layer.options)] for layer in graph.layers]
    return {"inputs": list(graph.inputs), "outputs": list(graph.outputs), "layers": layers}


def build(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Graph:
    """The graph of a description from `describe`, with its weights. Raises ValueError for another description."""
    try:
        layers = [
            GraphLayer(operation, tuple(inputs), output, options)
            for operation, inputs, output, options in description["layers"]
        ]
        return Graph(layers, description["inputs"], description["outputs"], weights)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the description of a graph ({error!r})") from error
