"""Multi-HMR's file on the Anny body: {'args': Namespace, 'model_state_dict': ...} (docs/models/multihmr.md, B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _multihmr
from dune_cli.checkpoints.adapters._common import vit_config, vit_summary
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.multihmr_anny import SHAPE, AnnyHeadConfig, MultiHmrAnny
from dune_cli.models.vit import VisionTransformer

NAME = "multihmr-anny"
KIND = "human"
WHAT = "a Multi-HMR model on Anny"
PRIORITY = 110
IGNORED = ("encoder.backbone.mask_token", "eye", *_multihmr.LEFTOVERS)
KEYS = KeyMap(rules=(), ignored=IGNORED)
MLPS = ("encoder.mlp_det", "encoder.mlp_fov_unique", "mlp_offset", "mlp_pose", "mlp_shape", "mlp_dist")
ARGUMENTS = ("img_size", "xat_depth", "xat_heads", "person_center")


def matches(checkpoint: Mapping[str, Any]) -> bool:
    keys = _multihmr.state_dict_of(checkpoint).keys()
    return {"encoder.mlp_det.0.weight", "mlp_dist.0.weight", "useful_rotmat"} <= keys


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], MultiHmrAnny]:
    tensors = KEYS.apply(_multihmr.state_dict_of(checkpoint))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    given = _multihmr.arguments(checkpoint, ARGUMENTS)
    if (center := given.get("person_center", "head")) != "head":
        raise CheckpointError(f"{WHAT}: its args have person_center={center!r}; supported: 'head'")
    vit = vit_config(shapes, "encoder.backbone.", "offset", WHAT)
    positions = shapes.of("dec_pos_emb", 2)[0]
    cells = round(positions**0.5)
    if cells * cells != positions:
        raise CheckpointError(f"{WHAT}: {positions} positions of cells do not form a square")
    _multihmr.check_size(given, cells * vit.patch, WHAT)
    transformer = _multihmr.transformer_config(
        shapes, "decoder.transformer.", _multihmr.number(given, "xat_heads", None, WHAT), WHAT
    )
    if (depth := _multihmr.number(given, "xat_depth", transformer.depth, WHAT)) != transformer.depth:
        raise CheckpointError(f"{WHAT}: its args say {depth} layers, its weights have {transformer.depth}")
    numbers = shapes.of("mlp_shape.2.weight", 2)[0]
    if numbers < len(SHAPE):
        raise CheckpointError(f"{WHAT}: its shape has {numbers} numbers, fewer than {len(SHAPE)}")
    config = AnnyHeadConfig(
        cells=cells,
        features=vit.width,
        bones=shapes.of("useful_rotmat", 2)[1],
        shape=numbers,
        hidden=_multihmr.hidden_widths(shapes, MLPS),
        transformer=transformer,
    )
    with torch.device("meta"):
        return tensors, MultiHmrAnny(VisionTransformer(vit), config)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, model = _read(checkpoint)
    vit = model.encoder.backbone.config
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"Multi-HMR on {vit_summary(vit)}, for the Anny body",
        teachers=(),
        patch=vit.patch,
        width=vit.width,
        parameters=count_parameters(tensors),
        notes=(
            f"square images of {model.size_px} px",
            f"{model.config.bones} bones, {model.config.shape} shape numbers",
        ),
    )


def build(checkpoint: Mapping[str, Any]) -> MultiHmrAnny:
    """The network with its weights. CheckpointError if they do not fit."""
    tensors, model = _read(checkpoint)
    load_strict(model, tensors, WHAT, KEYS)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The used tensors in official names, and the arguments that the shapes do not tell."""
    return _multihmr.export(checkpoint, IGNORED, ARGUMENTS)


restore = _multihmr.restore
