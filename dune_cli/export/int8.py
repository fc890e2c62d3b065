"""An ONNX file in 8-bit integers: linear layers, their inputs' ranges fixed by calibration (onnxruntime.quantization).

Attention, norms and activations stay float32. Products of activations (attention) in 8 bits cost accuracy: the cosine
of a trained ViT-S/14 fell from 0.997 to 0.958 (docs/export.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import optional, runtime
from dune_cli.export.onnx_file import require_onnx, set_metadata
from dune_cli.export.session import WHY
from dune_cli.io.outputs import scratch_folder

LEAST_SIDE = 64  # of a weight matrix
EXACT_FLAGS = {"avx512_vnni", "avx_vnni", "asimddp"}  # processors whose 8-bit products do not saturate


def quantise(source: Path, target: Path, inputs: Sequence[dict[str, np.ndarray]], facts: dict[str, Any]) -> int:
    """Writes the float32 file `source` as `target`, static int8, and returns how many layers it made 8-bit.

    inputs: calibration inputs by name. facts: the metadata of the new file. Weights are symmetric, one scale a channel;
    activations are unsigned, one scale a tensor, by their least and largest value. On processors without VNNI (x86) or
    dot products (ARM) weights have 7 bits, since 8-bit products saturate there.
    """
    onnx = require_onnx()
    quantization = optional.require("onnxruntime.quantization", WHY, extra="export")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with scratch_folder() as folder:
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = _linear_layers(onnx.load_model(prepared))
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            quantization.quantize_static(
                str(prepared),
                str(folder / "int8.onnx"),
                _reader(quantization, inputs),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=seven_bits(),
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        finally:
            logging.disable(level)
        model = onnx.load_model(folder / "int8.onnx")
    model.ClearField("metadata_props")
    set_metadata(model, facts)
    onnx.save_model(model, target)
    return len(nodes)


def seven_bits() -> bool:
    """Whether weights of 8 bits would saturate on this processor."""
    return not EXACT_FLAGS & runtime.cpu_flags()


def _linear_layers(model: Any) -> list[str]:
    """The nodes that multiply by a constant matrix."""
    sizes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and min(sizes.get(node.input[1], (0,))) >= LEAST_SIDE
    ]


def _reader(quantization: Any, inputs: Sequence[dict[str, np.ndarray]]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[dict[str, np.ndarray]] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    return Reader()
