"""Weights that a student starts from: stage two of the recipe, or any file of the same architecture."""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.checkpoints import files, store
from dune_cli.checkpoints.layouts.base import state_dict_of
from dune_cli.checkpoints.load import load_encoder
from dune_cli.errors import CheckpointError
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.models.positions import resample
from dune_cli.models.vit import VisionTransformer
from dune_cli.training.projectors import TransformerProjector
from dune_cli.training.students import Student
from dune_cli.training.timm_student import TimmStudent


def load_into(student: Student, name_or_path: str) -> tuple[str, ...]:
    """Fills the student's encoder, and the projectors that the file has for its teachers; names those teachers.

    Positions of another size are resampled. CheckpointError where the encoders differ.
    """
    encoder = student.encoder
    if isinstance(encoder, TimmStudent):
        state = state_dict_of(files.read_located(store.locate(name_or_path)).tree)
        _fill(encoder.model, state, name_or_path)
        return ()
    loaded = load_encoder(name_or_path, device="cpu")
    source = loaded.vit if isinstance(loaded, DistilledEncoder) else loaded
    state = dict(source.state_dict())
    if isinstance(source, VisionTransformer) and isinstance(encoder, VisionTransformer):
        side = encoder.config.positions_side
        state["pos_embed"] = resample(source.pos_embed, (side, side), "antialias")
    _fill(encoder, state, name_or_path)
    return _fill_projectors(student, loaded)


def _fill(target: nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    wanted = target.state_dict()
    problems = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    problems += [key for key in state if key not in wanted]
    if problems:
        raise CheckpointError(
            f"--init {name} does not fit the student: {len(problems)} keys are missing, left over or of another shape, "
            f"such as {', '.join(problems[:3])}"
        )
    target.load_state_dict(state)


def _fill_projectors(student: Student, loaded: nn.Module) -> tuple[str, ...]:
    taken = []
    have = dict(loaded.projectors.items()) if isinstance(loaded, DistilledEncoder) else {}
    for name, projector in student.projectors.items():
        if name not in have or not isinstance(projector, TransformerProjector):
            continue
        state, wanted = have[name].state_dict(), projector.projector.state_dict()
        if {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in wanted.items()}:
            projector.projector.load_state_dict(state)
            taken.append(name)
    return tuple(taken)
