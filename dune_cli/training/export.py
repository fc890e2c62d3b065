"""A trained student as a file that the one encoder loader, or timm, reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dune_cli.checkpoints import files, inventory, layouts, store
from dune_cli.errors import JobFailed
from dune_cli.io.atomic import atomic_path
from dune_cli.models.mini import MiniEncoder
from dune_cli.provenance import Source
from dune_cli.training.projectors import TransformerProjector
from dune_cli.training.students import Student
from dune_cli.training.teacher_norm import RunningTokenNorm
from dune_cli.training.timm_student import TimmStudent


def published_tree(student: Student, norms: nn.ModuleDict) -> dict[str, dict[str, torch.Tensor]]:
    """Encoder, projectors and teacher norms in the published names of DUNE's layout.

    Only the paper's projectors (`tp`) have a place in that layout; others stay in the run's checkpoints.
    """
    chunk = "" if isinstance(student.encoder, MiniEncoder) else "0."
    state = {}
    for key, value in student.encoder.state_dict().items():
        state["encoder." + key.replace("blocks.", f"blocks.{chunk}", 1)] = value
    for name, projector in student.projectors.items():
        if isinstance(projector, TransformerProjector):
            for key, value in projector.projector.state_dict().items():
                state[f"projectors.{name}.{key}"] = value
    for name, kinds in norms.items():
        for kind, norm in kinds.items():
            if not isinstance(norm, RunningTokenNorm):
                continue  # PHI-S has no place in the layout; its statistics stay in the run's checkpoints
            for key, value in norm.state_dict().items():
                state[f"teacher_norms.{name}.normalizers.{kind}.{key}"] = value
    return {"model": {key: value.detach().cpu().contiguous() for key, value in state.items()}}


def write_student(path: Path, student: Student, norms: nn.ModuleDict, licence: str, dtype: torch.dtype) -> None:
    """Writes `path` (.safetensors), whole or not at all.

    A timm student is written as timm's own state dict, which `timm.create_model(name, checkpoint_path=path)` loads.
    Any other is written in our layout, whose header names it; `dtype` float16 halves the file. JobFailed when it cannot
    be written.
    """
    if isinstance(student.encoder, TimmStudent):
        tensors = student.encoder.model.state_dict()
        header = {"timm": student.encoder.name}
    else:
        tensors, header = layouts.to_safetensors(published_tree(student, norms))
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            files.write_safetensors(temporary, tensors, {**header, "dune.licence": licence})
    except OSError as error:
        why = error.strerror or error
        raise JobFailed(f"cannot write {path} ({why}); make room and run the same command again") from error


def licence_of(teachers: Mapping[str, Source], stem: Mapping[str, Source], init: str | None = None) -> str:
    """The header's licence text: whose outputs the student learned from, and whose weights it started from.

    init: the name or file of `--init`.
    """
    text = "distilled by dune from: " + json.dumps({n: s.licence for n, s in teachers.items()}, sort_keys=True)
    if stem:
        text += "; stem: " + json.dumps({s.name: s.licence for s in stem.values()}, sort_keys=True)
    if init is not None:
        located = store.locate(init)
        licence = inventory.licence_of(located, files.read_located(located).metadata)
        text += f"; started from {located.entry.name if located.entry else located.path.name}: {licence}"
    return text
