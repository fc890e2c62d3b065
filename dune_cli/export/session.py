"""An ONNX file in ONNX Runtime, on the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dune_cli import optional
from dune_cli.errors import UserError
from dune_cli.provenance import sha256_of

WHY = "the export of networks"
PROVIDERS = ["CPUExecutionProvider"]
METADATA = "dune."


class OnnxSession:
    """Runs a file that `dune export` wrote. facts: its metadata; sha256: of the file; version: of ONNX Runtime.

    Raises PackageMissing without onnxruntime, UserError for a file that it cannot open or that dune did not write.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime = optional.require("onnxruntime", "ONNX Runtime", extra="export")
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads sleep while they wait
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        except Exception as error:  # onnxruntime's own classes
            first = str(error).strip().splitlines()[:1]
            raise UserError(
                f"{path} is no ONNX file that opens ({''.join(first)}); write it by 'dune export'"
            ) from error
        texts = self._session.get_modelmeta().custom_metadata_map.items()
        self.facts = {key.removeprefix(METADATA): _value(text) for key, text in texts if key.startswith(METADATA)}
        if not {"kind", "sha256", "precision", "patch"} <= set(self.facts):
            raise UserError(f"{path} was not written by 'dune export'; ONNX files of others are not taken")
        self.path, self.sha256, self.version = path, sha256_of(path), onnxruntime.__version__
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, *images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images (B, 3, H, W) RGB in [0, 1], one tensor an input -> the outputs by name, float32.

        UserError for sides that are no multiples of the patch.
        """
        patch = self.facts["patch"]
        for one in images:
            height, width = one.shape[-2:]
            if height % patch or width % patch:
                raise UserError(f"image sides must be multiples of the patch size {patch}; received {height}x{width}")
        arrays = {name: one.float().cpu().contiguous().numpy() for name, one in zip(self.inputs, images)}
        return dict(zip(self.outputs, map(torch.from_numpy, self._session.run(self.outputs, arrays))))


def _value(text: str) -> Any:
    return json.loads(text) if text[:1] in ("[", "{") or (text.isdecimal() and len(text) < 10) else text
