"""The networks of the human heads, by name or file; `tasks/human.py` joins them with their body models."""

from __future__ import annotations

from pathlib import Path

from dune_cli.checkpoints.opened import expect, finish, naming, open_weights, target
from dune_cli.models.human.multihmr_anny import MultiHmrAnny
from dune_cli.models.human.multihmr_smplx import MultiHmrSmplx

HumanNetwork = MultiHmrSmplx | MultiHmrAnny


def load_human_network(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> HumanNetwork:
    """Multi-HMR on SMPL-X or on Anny, or our own safetensors of either, in evaluation mode.

    It has `size_px` (the square's side), `body` ("smplx" or "anny"), `backbone`, `source` and
    `forward(images, K, min_score) -> list[Detections]`. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = target(device, dtype)
    opened = open_weights(name_or_path)
    expect(opened, "human")
    with naming(opened.path):
        network = opened.adapter.build(opened.tree)
    return finish(network, opened.source, where, kind)
