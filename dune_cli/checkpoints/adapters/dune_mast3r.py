"""DUNE + MASt3R's decoder files: {'dune_backbone_name', 'mast3r_model_str', 'model'} (docs/models/mast3r.md).

The encoder lies in a DUNE file of its own, which `dune_backbone_name` names. A file that carries it under
`dune_backbone.` (our converted one) needs no second file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _two_view
from dune_cli.checkpoints.adapters._common import vit_config
from dune_cli.checkpoints.adapters._two_view import read_constructor
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict, without
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import DunePatches, TwoViewDecoder, TwoViewModel
from dune_cli.models.vit import VisionTransformer

NAME = "dune+mast3r"
KIND = "two-view"
WHAT = "a DUNE + MASt3R model"
PRIORITY = 50
ENCODERS = ("dune", "dinov2", "dinov2-training")
BACKBONE = "dune_backbone."
PREFIX = "mast3r."
KEYS = KeyMap(
    rules=(
        ("dune_backbone.blocks.{chunk}.{i}.", "encoder.vit.blocks.{i}."),
        (BACKBONE, "encoder.vit."),
        ("norm.", "encoder.norm."),
        *_two_view.rules(PREFIX),
    ),
    aliases=_two_view.aliases(PREFIX),
    ignored=(
        *_two_view.unused(PREFIX),
        *(PREFIX + name for name in ("patch_embed.", "enc_norm.", "enc_blocks.")),
        "imagenet_mean",
        "imagenet_std",
        f"{BACKBONE}mask_token",
    ),
)


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"norm.weight", "mast3r.decoder_embed.weight"} <= find_state_dict(checkpoint).keys()


def encoder_file(checkpoint: Mapping[str, Any], file_name: str = "") -> str | None:
    """The file of the DUNE encoder that the decoder was trained on; None where the file carries the encoder too."""
    return None if _has_encoder(checkpoint) else _encoder_file(checkpoint)


def _has_encoder(checkpoint: Mapping[str, Any]) -> bool:
    return any(key.startswith(BACKBONE) for key in find_state_dict(checkpoint))


def _encoder_file(checkpoint: Mapping[str, Any]) -> str:
    """`dune_vitbase_14_448_paper_encoder` -> `dune_vitbase14_448_paper.pth`."""
    name = checkpoint.get("dune_backbone_name")
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise CheckpointError("the decoder file does not name its DUNE encoder; give it with encoder= (--encoder FILE)")
    return name.removesuffix("_encoder").replace("_14", "14", 1) + ".pth"


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors = _two_view.complete(KEYS.apply(find_state_dict(checkpoint)))
    config = _two_view.decoder_config(
        _common.Shapes(tensors, KEYS, WHAT), read_constructor(checkpoint.get("mast3r_model_str")), WHAT
    )
    inside = _has_encoder(checkpoint)
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"two-view decoder of width {config.width}, {config.depth} blocks, "
        f"{'with' if inside else 'for'} a DUNE encoder of width {config.encoder_width}",
        teachers=(),
        patch=14,
        width=config.encoder_width,
        parameters=count_parameters(tensors),
        notes=() if inside else (f"needs the encoder file {_encoder_file(checkpoint)}",),
    )


def build(checkpoint: Mapping[str, Any], vit: VisionTransformer | None = None, file_name: str = "") -> TwoViewModel:
    """The model on the encoder `vit`, or on the one inside the file. CheckpointError if the two do not fit."""
    state = find_state_dict(checkpoint)
    given: tuple[str, ...] = ()
    if vit is not None:
        state = without(state, (BACKBONE,))
        given = ("encoder.vit.",)
    tensors = _two_view.complete(KEYS.apply(state))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    constructor = read_constructor(checkpoint.get("mast3r_model_str"))
    decoder = _two_view.decoder_config(shapes, constructor, WHAT)
    if vit is not None and vit.width != decoder.encoder_width:
        raise CheckpointError(
            f"the decoder is for a DUNE encoder of width {decoder.encoder_width} ({_encoder_file(checkpoint)}); "
            f"the given one has width {vit.width}"
        )
    with torch.device("meta"):
        encoder = DunePatches(vit or VisionTransformer(vit_config(shapes, "encoder.vit.", "offset", WHAT)))
        head = _two_view.head_config(shapes, constructor, encoder.patch, WHAT)
        model = TwoViewModel(encoder, TwoViewDecoder(decoder), head)
    load_strict(model, tensors, WHAT, KEYS, given=given)
    return model


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, the encoder's name and the constructor string."""
    settings = {
        name: str(checkpoint[name]) for name in ("dune_backbone_name", "mast3r_model_str") if name in checkpoint
    }
    return without(find_state_dict(checkpoint), KEYS.ignored), settings


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return {**settings, "model": dict(tensors)}
