"""A network as an ONNX file or a torch.export program, with sizes left open, compared with torch."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dune_cli import __version__, optional
from dune_cli.errors import JobFailed
from dune_cli.export.networks import ExportNetwork
from dune_cli.export.session import WHY, OnnxSession

OPSET = 20
TOLERANCE = 1e-4  # relative, of the norms
EXAMPLE = (2, 16, 20)  # batch, and rows and columns of patches, that the network is traced with
LEAST, MOST = 2, 1024  # patches along a side
# batch, rows and columns of patches at which a file is compared with torch; a fifth is the model's own size
CHECKED = ((1, 16, 16), (2, 12, 17), (1, 9, 24), (3, 8, 8))
LARGEST_BYTES = 1_900_000_000  # of weights: an ONNX file is one protobuf message, which holds 2 GiB
METADATA = "dune."


def export_program(network: ExportNetwork) -> Any:
    """The torch.export.ExportedProgram, open in batch and sizes; JobFailed where torch cannot trace the network."""
    batch, shapes = torch.export.Dim("batch"), {}
    for name in network.inputs:
        number = name.removeprefix("images")
        rows, columns = (torch.export.Dim(f"{axis}{number}", min=LEAST, max=MOST) for axis in ("rows", "columns"))
        shapes[name] = {0: batch, 2: network.patch * rows, 3: network.patch * columns}
    images = _images(network, *EXAMPLE)
    with _quiet():
        try:
            return torch.export.export(network.module, images, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch raises classes of its own
            raise JobFailed(f"torch.export cannot trace {network.sources[0].name}: {_first_line(error)}") from error


def save_program(program: Any, network: ExportNetwork, path: Path) -> None:
    """Writes the program as .pt2; the facts of the file are in its extra file dune.json."""
    with _quiet():
        torch.export.save(program, path, extra_files={"dune.json": json.dumps(metadata(network, "float32"))})


def save_onnx(program: Any, network: ExportNetwork, path: Path) -> None:
    """Writes the program as ONNX, opset OPSET. PackageMissing without onnx or onnxscript; JobFailed for a model of more
    than an ONNX file holds, and for one that onnxscript cannot translate."""
    onnx = require_onnx()
    optional.require("onnxscript", WHY, extra="export")
    size = sum(part.numel() * part.element_size() for part in network.module.state_dict().values())
    if size > LARGEST_BYTES:
        raise JobFailed(
            f"the weights of {network.sources[0].name} have {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; write a "
            ".pt2 file"
        )
    # an ONNX file has no assertions on sizes; of a two-view model their algebra did not end in eight minutes
    with _quiet(), torch._dynamo.config.patch(do_not_emit_runtime_asserts=True):
        try:
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(network.inputs),
                output_names=list(network.outputs),
                verbose=False,
            )
        except Exception as error:  # of many classes
            name = network.sources[0].name
            raise JobFailed(f"{name} cannot be written as ONNX: {_first_line(error)}") from error
    model = exported.model_proto
    _tidy(model)
    set_metadata(model, metadata(network, "float32"))
    onnx.save_model(model, path)


def metadata(network: ExportNetwork, precision: str) -> dict[str, Any]:
    """What a file says of itself."""
    first = network.sources[0]
    return {
        "version": __version__,
        "kind": network.kind,
        "precision": precision,
        "opset": OPSET,
        "model": first.name,
        "sha256": first.sha256,
        "licence": first.licence,
        "sources": [{"name": s.name, "sha256": s.sha256, "licence": s.licence} for s in network.sources],
        "inputs": dict.fromkeys(network.inputs, "(B, 3, H, W) RGB in [0, 1], float32"),
        "outputs": dict(network.outputs),
        "patch": network.patch,
        "size_px": network.size_px,
        **network.facts,
    }


def set_metadata(model: Any, facts: Mapping[str, Any]) -> None:
    """Writes facts into the metadata of an ONNX model, under `dune.`; what is no text as JSON."""
    onnx = require_onnx()
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(model, {METADATA + name: text for name, text in texts.items()})


def require_onnx() -> Any:
    """The package onnx. PackageMissing without it."""
    return optional.require("onnx", WHY, extra="export")


def compare(network: ExportNetwork, session: OnnxSession) -> list[dict[str, Any]]:
    """The relative error |onnx - torch| / |torch| of the worst output at five sizes. JobFailed beyond TOLERANCE."""
    own = network.size_px // network.patch
    found = []
    for batch, rows, columns in (*CHECKED, (1, own, own)):
        images = _images(network, batch, rows, columns)
        with torch.inference_mode():
            expected = network.original(*images)
        answers = session.run(*images)
        error = max(float((answers[name] - e).norm() / e.norm()) for name, e in zip(network.outputs, expected))
        size = {"batch": batch, "height": rows * network.patch, "width": columns * network.patch}
        found.append({**size, "relative_error": error})
        if not error <= TOLERANCE:
            raise JobFailed(
                f"the ONNX file of {network.sources[0].name} differs from torch by {error:.1e} at {size['width']} x "
                f"{size['height']} px, more than {TOLERANCE:g}; report it with the versions of 'dune doctor'"
            )
    return found


def noise(network: ExportNetwork, size_px: int) -> tuple[torch.Tensor, ...]:
    """One image of noise an input, square."""
    patches = size_px // network.patch
    return _images(network, 1, patches, patches)


def _images(network: ExportNetwork, batch: int, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Noise for every input; a second view is turned by 90 degrees, unless it is to be square."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(rows, columns), (columns, rows)][: len(network.inputs)]
    p = network.patch
    return tuple(torch.rand(batch, 3, p * h, p * w, generator=generator) for h, w in sizes)


def _tidy(model: Any) -> None:
    """Takes out what torch writes of its own (source lines, paths), and gives the axes of the inputs their names."""
    graph = model.graph
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    names = {}
    for value in graph.input:
        number = value.name.removeprefix("images")
        axes = value.type.tensor_type.shape.dim
        for axis, name in ((0, "batch"), (2, f"rows{number}"), (3, f"columns{number}")):
            for symbol in re.findall(r"[A-Za-z_]\w*", axes[axis].dim_param):
                names[symbol] = name
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), axis.dim_param)
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.ClearField("functions")
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version = "dune", __version__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and notes of torch's exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
