"""Readers of TensorFlow Lite and TensorFlow.js files, without TensorFlow, for the layers of small vision networks.

The results are graphs of `dune_cli.models.graph`. Sources: the TFLite schema (schema.fbs, version 3; the numbers below
are its operator and field numbers) and the layout of TensorFlow.js graph models (model.json).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.models.graph import Graph, GraphLayer

ADD, AVERAGE_POOL, CONV, DEPTHWISE_CONV, DEQUANTIZE = 0, 1, 3, 4, 6  # BuiltinOperator
LOGISTIC, MAX_POOL, MUL, RELU, RESHAPE, RESIZE_BILINEAR, PAD, HARD_SWISH = 14, 17, 18, 19, 22, 23, 34, 117
WITH_OPTIONS = (ADD, AVERAGE_POOL, CONV, DEPTHWISE_CONV, MAX_POOL, MUL, RESIZE_BILINEAR)
FUSED = {0: "none", 1: "relu", 3: "relu6"}  # ActivationFunctionType
TYPES = {0: "<f4", 1: "<f2", 2: "<i4"}  # TensorType, of float networks
QUANTISED = {2: "<i4", 3: "u1", 9: "i1"}  # TensorType, of quantised ones


@dataclass(frozen=True)
class Table:
    """A flatbuffers table: fields by number, absent ones as their default."""

    data: bytes
    at: int

    def _field(self, number: int) -> int | None:
        vtable = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", self.data, vtable)[0]:
            return None
        offset = struct.unpack_from("<H", self.data, vtable + 4 + 2 * number)[0]
        return self.at + offset if offset else None

    def _follow(self, place: int) -> int:
        return place + struct.unpack_from("<I", self.data, place)[0]

    def scalar(self, number: int, kind: str, default: int = 0) -> int:
        place = self._field(number)
        return default if place is None else struct.unpack_from(f"<{kind}", self.data, place)[0]

    def table(self, number: int) -> Table:
        place = self._field(number)
        assert place is not None, f"no field {number}"
        return Table(self.data, self._follow(place))

    def array(self, number: int, kind: str) -> np.ndarray:
        place = self._field(number)
        if place is None:
            return np.empty(0, kind)
        start = self._follow(place)
        return np.frombuffer(self.data, kind, struct.unpack_from("<I", self.data, start)[0], start + 4)

    def tables(self, number: int) -> list[Table]:
        place = self._field(number)
        assert place is not None, f"no field {number}"
        start = self._follow(place) + 4
        count = struct.unpack_from("<I", self.data, start - 4)[0]
        return [Table(self.data, self._follow(start + 4 * index)) for index in range(count)]


def read_tflite(path: Path, outputs: Sequence[int] | None = None) -> Graph:
    """The graph of a TFLite file with float weights; `outputs` are the numbers of those to keep (default: all)."""
    data = path.read_bytes()
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [(max(c.scalar(0, "b"), c.scalar(3, "i")), c.array(1, "u1").tobytes().decode()) for c in model.tables(1)]
    buffers, graph = model.tables(4), model.tables(2)[0]
    tensors = graph.tables(0)
    shapes = [tuple(int(n) for n in tensor.array(0, "<i4")) for tensor in tensors]
    weights: dict[str, torch.Tensor] = {}
    constants: dict[int, np.ndarray] = {}
    for index, tensor in enumerate(tensors):
        content = buffers[tensor.scalar(2, "I")].array(0, "u1")
        if content.size:
            constants[index] = content.view(TYPES[tensor.scalar(1, "b")]).reshape(shapes[index])

    def weight(index: int, order: tuple[int, ...] | None = None) -> str:
        """The name of a constant as a weight, its axes in another order."""
        value = constants[index] if order is None else constants[index].transpose(order)
        weights[f"t{index}"] = torch.from_numpy(value.copy())
        return f"t{index}"

    layers: list[GraphLayer] = []
    for operator in graph.tables(3):
        number, custom = codes[operator.scalar(0, "I")]
        ins = [int(index) for index in operator.array(1, "<i4")]
        out = int(operator.array(2, "<i4")[0])
        if number == DEQUANTIZE:  # stored as float16
            constants[out] = constants[ins[0]]
            continue
        x, output = f"t{ins[0]}", f"t{out}"
        options = operator.table(4) if number in WITH_OPTIONS else operator
        if number in (CONV, DEPTHWISE_CONV):
            depthwise = number == DEPTHWISE_CONV
            dilation = 5 if depthwise else 4
            assert options.scalar(dilation, "i", 1) == options.scalar(dilation + 1, "i", 1) == 1
            assert options.scalar(1, "i") == options.scalar(2, "i")
            made = {"stride": options.scalar(1, "i"), "same": options.scalar(0, "b") == 0}
            if depthwise:
                made["groups"] = shapes[ins[0]][3]
            if fused := FUSED[options.scalar(4 if depthwise else 3, "b")]:
                made["activation"] = fused
            kernel = weight(ins[1], (3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
            layers.append(GraphLayer("convolution", (x, kernel, weight(ins[2])), output, made))
        elif number in (ADD, MUL):
            assert not {*ins} & {*constants}
            name = "add" if number == ADD else "multiply"
            made = {"activation": FUSED[options.scalar(0, "b")]}
            layers.append(GraphLayer(name, tuple(f"t{index}" for index in ins), output, made))
        elif number == AVERAGE_POOL:
            assert (options.scalar(4, "i"), options.scalar(3, "i")) == shapes[ins[0]][1:3], "only over whole maps"
            layers.append(GraphLayer("mean", (x,), output))
        elif number == MAX_POOL:
            assert options.scalar(3, "i") == options.scalar(4, "i")
            same = options.scalar(0, "b") == 0
            made = {"kernel": options.scalar(3, "i"), "stride": options.scalar(1, "i"), "same": same}
            layers.append(GraphLayer("max_pool", (x,), output, made))
        elif number == RESIZE_BILINEAR:
            assert options.scalar(3, "b") and not options.scalar(2, "b")
            layers.append(GraphLayer("enlarge", (x,), output, {"factor": _factor(shapes[ins[0]], constants[ins[1]])}))
        elif number == PAD:
            (top, bottom), (left, right) = constants[ins[1]].reshape(4, 2)[1:3].tolist()
            assert not constants[ins[1]].reshape(4, 2)[[0, 3]].any()
            layers.append(GraphLayer("pad", (x,), output, {"edges": [left, right, top, bottom]}))
        elif number == RESHAPE:
            assert len(shapes[out]) == 2
            layers.append(GraphLayer("flatten", (x,), output))
        elif number in (LOGISTIC, RELU, HARD_SWISH):
            name = {LOGISTIC: "sigmoid", RELU: "relu", HARD_SWISH: "hard_swish"}[number]
            layers.append(GraphLayer("activate", (x,), output, {"activation": name}))
        elif custom == "Convolution2DTransposeBias":
            padding, stride, stride_w = struct.unpack("<3i", operator.array(5, "u1").tobytes())
            assert padding == 1 and stride == stride_w  # SAME, which at kernel = stride adds nothing
            kernel = weight(ins[1], (3, 0, 1, 2))
            layers.append(GraphLayer("transposed_convolution", (x, kernel, weight(ins[2])), output, {"stride": stride}))
        else:
            raise SystemExit(f"{path}: operator {number} {custom} is not known")
    given = [f"t{index}" for index in graph.array(2, "<i4")]
    wanted = given if outputs is None else [given[number] for number in outputs]
    return _needed(layers, [f"t{index}" for index in graph.array(1, "<i4")], wanted, weights)


def read_tflite_convolutions(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(kernel, bias) of every convolution of a quantised TFLite file, in the order in which they run, as float32.

    Kernels are (out, in / groups, kh, kw). A stored q means (q - zero point) * scale, per tensor or channel.
    """
    data = path.read_bytes()
    model = Table(data, struct.unpack_from("<I", data)[0])
    codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in model.tables(1)]
    buffers, graph = model.tables(4), model.tables(2)[0]
    tensors = graph.tables(0)

    def values(index: int) -> torch.Tensor:
        tensor = tensors[index]
        stored = buffers[tensor.scalar(2, "I")].array(0, "u1").view(QUANTISED[tensor.scalar(1, "b")])
        stored = stored.reshape(tuple(int(n) for n in tensor.array(0, "<i4"))).astype(np.float64)
        quantisation = tensor.table(4)
        scale, zero = quantisation.array(2, "<f4").astype(np.float64), quantisation.array(3, "<i8")
        shape = [1] * stored.ndim
        if len(scale) > 1:
            shape[quantisation.scalar(6, "i")] = len(scale)
        return torch.from_numpy(((stored - zero.reshape(shape)) * scale.reshape(shape)).astype(np.float32))

    found = []
    for operator in graph.tables(3):
        kind = codes[operator.scalar(0, "I")]
        if kind in (CONV, DEPTHWISE_CONV):
            _, kernel, bias = (int(index) for index in operator.array(1, "<i4"))
            order = (0, 3, 1, 2) if kind == CONV else (3, 0, 1, 2)
            found.append((values(kernel).permute(order).contiguous(), values(bias)))
    return found


def read_tfjs(path: Path, outputs: Sequence[str]) -> Graph:
    """The part of a TensorFlow.js graph model that leads from its input to the nodes that end with `outputs`."""
    model = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
    constants = _tfjs_weights(model["weightsManifest"], path.parent)
    placeholder = next(name for name, node in nodes.items() if node["op"] == "Placeholder")
    weights: dict[str, torch.Tensor] = {}
    layers: list[GraphLayer] = []
    made: dict[str, str] = {placeholder: placeholder}

    def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
        weights[name] = torch.from_numpy(np.array(change(constants[name])))
        return name

    def visit(name: str) -> str:
        """The activation that a node gives, its layers appended."""
        if name in made:
            return made[name]
        node = nodes[name]
        kind, attributes = node["op"], node.get("attr", {})
        ins = [key.split(":")[0] for key in node["input"] if not key.startswith("^")]
        if kind in ("Cast", "Identity"):
            made[name] = visit(ins[0])
            return made[name]
        if "Conv2D" in kind or "Conv2d" in kind:
            layers.append(_tfjs_convolution(name, kind, attributes, visit(ins[0]), ins[1:], weight, constants))
        elif kind in ("AddV2", "Sub", "Mul"):
            sign = -1 if kind == "Sub" else 1
            assert kind != "Sub" or ins[1] in constants
            change = lambda value: sign * (value.reshape(1, -1, 1, 1) if value.ndim else value)  # noqa: E731
            names = tuple(weight(key, change) if key in constants else visit(key) for key in ins)
            layers.append(GraphLayer("multiply" if kind == "Mul" else "add", names, name))
        elif kind in ("Relu", "Relu6", "Sigmoid"):
            layers.append(GraphLayer("activate", (visit(ins[0]),), name, {"activation": kind.lower()}))
        elif kind == "ResizeBilinear":
            assert attributes["half_pixel_centers"]["b"] and not attributes["align_corners"]["b"]
            scale = next(constants[key] for key in nodes[ins[1]]["input"] if key in constants)  # size = shape x this
            assert nodes[ins[1]]["op"] == "Mul" and scale[0] == scale[1]
            layers.append(GraphLayer("enlarge", (visit(ins[0]),), name, {"factor": int(scale[0])}))
        else:
            raise SystemExit(f"{path}: node {name} of kind {kind} is not known")
        made[name] = name
        return name

    wanted = [visit(next(name for name in nodes if name.endswith(ending))) for ending in outputs]
    return _needed(layers, [placeholder], wanted, weights)


def _tfjs_convolution(
    name: str,
    kind: str,
    attributes: dict[str, Any],
    x: str,
    constant: list[str],
    weight: Callable[[str, Callable[[np.ndarray], np.ndarray]], str],
    constants: dict[str, np.ndarray],
) -> GraphLayer:
    """A convolution (weights HWIO) or a depthwise one (HWIM, M = 1), with what is fused to it."""
    strides = attributes["strides"]["list"]["i"]
    assert strides[1] == strides[2] and {*attributes.get("dilations", {}).get("list", {}).get("i", ["1"])} == {"1"}
    padding = base64.b64decode(attributes["padding"]["s"]).decode()
    assert padding in ("SAME", "VALID")
    options: dict[str, Any] = {"stride": int(strides[1]), "same": padding == "SAME"}
    fused = [base64.b64decode(s).decode() for s in attributes.get("fused_ops", {}).get("list", {}).get("s", [])]
    assert fused in ([], ["BiasAdd"], ["BiasAdd", "Relu"], ["BiasAdd", "Relu6"]), fused
    if fused[1:]:
        options["activation"] = fused[1].lower()
    if "epthwise" in kind:
        assert constants[constant[0]].shape[3] == 1
        options["groups"] = int(constants[constant[0]].shape[2])
        kernel = weight(constant[0], lambda value: value.transpose(2, 3, 0, 1))
    else:
        kernel = weight(constant[0], lambda value: value.transpose(3, 2, 0, 1))
    return GraphLayer(
        "convolution", (x, kernel, *(weight(key, lambda value: value) for key in constant[1:])), name, options
    )


def _tfjs_weights(manifest: list[dict[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """Constants by node name, as stored: float16, float32, int32."""
    found = {}
    for group in manifest:
        data, at = b"".join((folder / name).read_bytes() for name in group["paths"]), 0
        for entry in group["weights"]:
            kind = entry.get("quantization", {}).get("dtype", entry["dtype"])
            kind = {"float16": "<f2", "float32": "<f4", "int32": "<i4"}[kind]
            count = prod(entry["shape"])
            found[entry["name"]] = np.frombuffer(data, kind, count, at).reshape(entry["shape"])
            at += count * np.dtype(kind).itemsize
    return found


def _factor(shape: tuple[int, ...], size: np.ndarray) -> int:
    """The factor by which a map (1, H, W, C) is enlarged to `size`."""
    factor = int(size[0]) // shape[1]
    assert (shape[1] * factor, shape[2] * factor) == tuple(size.tolist())
    return factor


def _needed(
    layers: Sequence[GraphLayer], inputs: Sequence[str], outputs: Sequence[str], weights: dict[str, torch.Tensor]
) -> Graph:
    """The graph of those layers on which the outputs depend."""
    wanted, kept = set(outputs), []
    for layer in reversed(layers):
        if layer.output in wanted:
            kept.insert(0, layer)
            wanted.update(layer.inputs)
    return Graph(kept, inputs, outputs, {name: value for name, value in weights.items() if name in wanted})
