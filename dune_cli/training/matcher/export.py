"""A trained head as a file that `load_match_head` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from dune_cli.checkpoints import files, layouts
from dune_cli.checkpoints.layouts import dune_matcher
from dune_cli.errors import JobFailed
from dune_cli.io.atomic import atomic_path
from dune_cli.models.match_head import MatchHead
from dune_cli.provenance import Source


def write_head(path: Path, head: MatchHead, begun_from: Mapping[str, Source], dtype: torch.dtype) -> None:
    """Writes `path` (.safetensors), whole or not at all; its header names the weights that the head began from.

    `dtype` float16 halves the file. JobFailed when it cannot be written.
    """
    tensors, header = layouts.to_safetensors(dune_matcher.tree_of(head))
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            files.write_safetensors(temporary, tensors, {**header, "dune.licence": licence_of(begun_from)})
    except OSError as error:
        why = error.strerror or error
        raise JobFailed(f"cannot write {path} ({why}); make room and run the same command again") from error


def licence_of(begun_from: Mapping[str, Source]) -> str:
    """The header's licence text."""
    return "trained by dune from: " + json.dumps({s.name: s.licence for s in begun_from.values()}, sort_keys=True)
