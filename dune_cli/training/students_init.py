"""Weights that a student starts from: stage two of the recipe, or any file of the same architecture."""

from __future__ import annotations

import torch
from torch import nn

from dune_cli.checkpoints import files, store
from dune_cli.checkpoints.load import load_encoder
from dune_cli.errors import CheckpointError
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.models.positions import resample
from dune_cli.training.students import TimmStudent


def load_into(encoder: nn.Module, name_or_path: str) -> None:
    """Fills the student's encoder; positions of another size are resampled. CheckpointError where shapes differ."""
    if isinstance(encoder, TimmStudent):
        state = dict(files.read_weights(store.locate(name_or_path).path).tree)
        target: nn.Module = encoder.model
    else:
        loaded = load_encoder(name_or_path, device="cpu")
        state = (loaded.vit if isinstance(loaded, DistilledEncoder) else loaded).state_dict()
        target = encoder
    wanted = target.state_dict()
    positions = state.get("pos_embed")
    if positions is not None and "pos_embed" in wanted and positions.shape[-1] == wanted["pos_embed"].shape[-1]:
        side = round((wanted["pos_embed"].shape[1] - 1) ** 0.5)
        if not isinstance(encoder, TimmStudent):
            state["pos_embed"] = resample(positions, (side, side), "antialias")
    problems = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    problems += [key for key in state if key not in wanted]
    if problems:
        raise CheckpointError(
            f"--init {name_or_path} does not fit the student: {len(problems)} keys differ, such as "
            f"{', '.join(problems[:5])}"
        )
    with torch.no_grad():
        target.load_state_dict({key: state[key] for key in wanted})
