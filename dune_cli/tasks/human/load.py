"""`load_human`: a model of people by name or file, joined with its body."""

from __future__ import annotations

from pathlib import Path

from dune_cli.bodies.body import Body
from dune_cli.bodies.registry import load_anny, load_smplx
from dune_cli.checkpoints.loader import load_human_network
from dune_cli.models.people_poses import PeopleNetwork
from dune_cli.tasks.human.fitted import BodyFitter, FittedHumanModel
from dune_cli.tasks.human.model import HumanModel


def load_human(
    name_or_path: str | Path,
    body_models: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    encoder: str | Path | None = None,
) -> HumanModel | FittedHumanModel:
    """Multi-HMR, the networks that come with dune, or a head of `dune train human`, with their body; from a registry
    name, a published file, or our own safetensors file.

    body_models: folder with smplx/SMPLX_NEUTRAL.npz, which SMPL-X models need; None: $DUNE_WEIGHTS. Anny is part of
    this package. The networks that come with dune are float32 whatever `dtype`. encoder: name or file of the encoder
    of a head; None: the one that the head's file names, beside it or among the weights. Raises WeightsMissing (weights,
    or the SMPL-X file), CheckpointError, UserError.
    """
    network = load_human_network(name_or_path, device, dtype, encoder)
    if isinstance(network, PeopleNetwork):
        return FittedHumanModel(network, load_fitter()).eval()
    if network.body == "anny":
        body: Body = load_anny(network.rig)
    else:
        config = network.config
        body = load_smplx(body_models, betas=config.betas, expression=config.expression)
    return HumanModel(network, body.to(next(network.parameters()).device)).eval()


def load_fitter() -> BodyFitter:
    """The body that is fitted to joints, on the CPU."""
    return BodyFitter(load_anny("light")).eval()
