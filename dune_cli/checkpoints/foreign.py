"""Other people's networks, as their packages carry them: a state dict and where it is from. No layout of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dune_cli.checkpoints import files, store
from dune_cli.provenance import Source


@dataclass(frozen=True)
class Foreign:
    """A file's tensors by their published names."""

    path: Path
    tree: Mapping[str, torch.Tensor]
    source: Source


def open_foreign(name_or_path: str, called: str | None = None) -> Foreign:
    """The file behind a registry name or a path; its source goes by `called`, else by what was asked for.

    WeightsMissing where it is to be pulled first, CheckpointError for a file that cannot be read.
    """
    located = store.locate(name_or_path)
    file = files.read_located(located)
    licence = located.entry.licence if located.entry else "unknown"
    return Foreign(located.path, file.tree, Source(called or name_or_path, file.sha256, licence))


def glue_names(tree: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LightGlue file, whose layers some copies call `self_attn.0`, in the names `transformers.0.self_attn`."""
    attention = re.compile(r"^(self_attn|cross_attn)\.(\d+)\.")
    return {attention.sub(r"transformers.\2.\1.", key.removeprefix("matcher.")): v for key, v in tree.items()}
