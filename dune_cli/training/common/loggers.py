"""Where the log goes besides log.jsonl: TensorBoard, if it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dune_cli import optional

LOGGERS = ("tensorboard",)


class TensorBoard:
    """Every number of the log as a scalar, in `folder`/tensorboard. PackageMissing where it is not installed."""

    def __init__(self, folder: Path) -> None:
        optional.require("tensorboard", "--logger tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, entry: dict[str, Any]) -> None:
        """One entry of the log."""
        for name, value in entry.items():
            if name != "step":
                self._writer.add_scalar(name, value, entry["step"])
        self._writer.flush()
