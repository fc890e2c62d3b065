"""`--runtime`: torch, or ONNX Runtime in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dune_cli.commands import options
from dune_cli.commands.options import ComputeOptions
from dune_cli.errors import UserError
from dune_cli.provenance import Run


def _checked_runtime(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value not in ("torch", "onnx") and not (value.endswith(".onnx") and Path(value).expanduser().is_file()):
        raise UserError(f"--runtime {value} is no runtime and no .onnx file that is here; give torch, onnx or a file")
    return value


@options.group("Advanced")
class RuntimeOptions(ComputeOptions):
    runtime: str = options.option(
        "--runtime torch|onnx|FILE",
        "Library that runs the network on the processor. onnx: ONNX Runtime, on a file that is made of the model on "
        "first use and kept. FILE: ONNX Runtime on a .onnx file of 'dune export' of the same model.",
        default="torch",
        callback=_checked_runtime,
    )

    @property
    def other_runtime(self) -> str | None:
        """The runtime, None for torch."""
        return None if self.runtime == "torch" else self.runtime

    @property
    def placed(self) -> tuple[str, str]:
        """Device and dtype to load the model with. UserError for those that ONNX Runtime does not run with."""
        if self.runtime == "torch":
            return self.device, self.dtype
        if self.device not in ("auto", "cpu") or self.dtype not in ("auto", "float32"):
            raise UserError(
                f"--runtime {self.runtime} runs on the processor, in the number type of its file; leave --device "
                f"{self.device} and --dtype {self.dtype} out"
            )
        return "cpu", "float32"

    def apply(self, model: Any, kind: str, run: Run) -> tuple[Any, dict[str, Any]]:
        """The model on this runtime, and what the provenance says of it. `kind`: of `dune export`."""
        if self.runtime == "torch":
            return model, {"dtype": self.dtype}
        from dune_cli.export.onnx_runtime import on_onnx

        model, facts = on_onnx(model, kind, self.runtime, run)
        return model, {"dtype": facts["runtime"]["precision"], **facts}
