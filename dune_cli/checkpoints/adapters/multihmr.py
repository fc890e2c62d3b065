"""Multi-HMR's files on the SMPL-X body: {'args': Namespace, 'model_state_dict': ...} (docs/models/multihmr.md, A)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _multihmr
from dune_cli.checkpoints.adapters._common import vit_config, vit_summary
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.multihmr_smplx import ROTATIONS, MultiHmrSmplx, SmplxHeadConfig
from dune_cli.models.vit import VisionTransformer

NAME = "multihmr"
KIND = "human"
WHAT = "a Multi-HMR model on SMPL-X"
PRIORITY = 100
IGNORED = ("backbone.encoder.mask_token", *_multihmr.LEFTOVERS)
KEYS = KeyMap(rules=(("backbone.encoder.", "backbone."),), ignored=IGNORED)
HEAD = "x_attention_head."
ARGUMENTS = (
    "img_size",
    "num_betas",
    "camera_embedding",
    "camera_embedding_num_bands",
    "camera_embedding_max_resolution",
    "nearness",
    "xat_num_heads",
)
MAX_RESOLUTION = 64


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"mlp_classif.0.weight", f"{HEAD}decpose.weight"} <= _multihmr.state_dict_of(checkpoint).keys()


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], MultiHmrSmplx]:
    tensors = KEYS.apply(_multihmr.state_dict_of(checkpoint))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    given = _multihmr.arguments(checkpoint, ARGUMENTS)
    _check_variant(given)
    betas = shapes.of(f"{HEAD}decshape.weight", 2)[0]
    _choose_betas(tensors, betas)
    vit = vit_config(shapes, "backbone.", "offset", WHAT)
    cells, context = shapes.of(f"{HEAD}cross_queries_x", 2)
    _multihmr.check_size(given, cells * vit.patch, WHAT)
    if shapes.of(f"{HEAD}decpose.weight", 2)[0] != ROTATIONS * 6:
        raise CheckpointError(f"{WHAT}: its pose has not {ROTATIONS} rotations of 6 numbers")
    channels = context - vit.width
    bands = _multihmr.number(given, "camera_embedding_num_bands", (channels - 3) // 6, WHAT)
    if channels != 3 + 6 * bands:
        raise CheckpointError(f"{WHAT}: {channels} channels of camera embedding do not hold {bands} bands")
    config = SmplxHeadConfig(
        cells=cells,
        features=vit.width,
        bands=bands,
        highest_band=_multihmr.number(given, "camera_embedding_max_resolution", MAX_RESOLUTION, WHAT) / 2,
        betas=betas,
        expression=shapes.of(f"{HEAD}decexpression.weight", 2)[0],
        hidden=_multihmr.hidden_widths(shapes, ("mlp_classif", "mlp_offset")),
        transformer=_multihmr.transformer_config(
            shapes, f"{HEAD}transformer.transformer.", _multihmr.number(given, "xat_num_heads", None, WHAT), WHAT
        ),
    )
    with torch.device("meta"):
        return tensors, MultiHmrSmplx(VisionTransformer(vit), config)


def _check_variant(given: Mapping[str, Any]) -> None:
    """CheckpointError for settings whose shapes are the same but whose computation is another one."""
    if (embedding := given.get("camera_embedding", "geometric")) != "geometric":
        raise CheckpointError(f"{WHAT}: its args have camera_embedding={embedding!r}; supported: 'geometric'")
    if not given.get("nearness", 1):
        raise CheckpointError(f"{WHAT}: its args have nearness=0; supported: 1")


def _choose_betas(tensors: dict[str, torch.Tensor], betas: int) -> None:
    """A file with 11 betas may hold its starting point under `init_betas_kid`, beside the one of 10."""
    kid = tensors.pop(f"{HEAD}init_betas_kid", None)
    own = tensors.get(f"{HEAD}init_betas")
    if kid is not None and kid.shape[-1] == betas and (own is None or own.shape[-1] != betas):
        tensors[f"{HEAD}init_betas"] = kid


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint)
    vit, config = model.backbone.config, model.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"Multi-HMR on {vit_summary(vit)}, for the SMPL-X body",
        teachers=(),
        patch=vit.patch,
        width=vit.width,
        parameters=count_parameters(tensors),
        notes=(f"square images of {model.size_px} px", f"{config.betas} betas, {config.expression} expressions"),
    )


def build(checkpoint: Mapping[str, Any]) -> MultiHmrSmplx:
    """The network with its weights. CheckpointError if they do not fit."""
    tensors, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, KEYS)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The used tensors in official names, and the arguments that the shapes do not tell."""
    return _multihmr.export(checkpoint, IGNORED, ARGUMENTS)


restore = _multihmr.restore
