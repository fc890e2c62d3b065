"""Both published heads against their fixtures, through files in the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dune_cli.checkpoints import files, layouts


def _build(path: Path, tree: dict[str, Any]) -> Any:
    torch.save(tree, path)
    file = files.read_weights(path)
    adapter, inner = layouts.published(file.tree, file.metadata)
    return adapter.build(inner).eval().requires_grad_(False)
