"""DUNE + MASt3R's decoder files: {'dune_backbone_name', 'mast3r_model_str', 'model'} (spec 3).

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
from dune_cli.checkpoints.state_dict import KeyMap, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import DunePatches, TwoViewDecoder, TwoViewModel
from dune_cli.models.vit import VisionTransformer

NAME = "dune+mast3r"
KIND = "two-view"
WHAT = "a DUNE + MASt3R model"
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


def matches(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    return {"norm.weight", "mast3r.decoder_embed.weight"} <= _common.state_dict_of(tree).keys()


def has_encoder(tree: Mapping[str, Any]) -> bool:
    """Whether the file carries the DUNE encoder too."""
    return any(key.startswith(BACKBONE) for key in _common.state_dict_of(tree))


def encoder_file(tree: Mapping[str, Any]) -> str:
    """The file name of the DUNE encoder that the decoder was trained on.

    `dune_vitbase_14_448_paper_encoder` -> `dune_vitbase14_448_paper.pth`.
    """
    name = tree.get("dune_backbone_name")
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise CheckpointError("the decoder file does not name its DUNE encoder; give it with encoder= (--encoder FILE)")
    return name.removesuffix("_encoder").replace("_14", "14", 1) + ".pth"


def describe(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> _common.Description:
    tensors = _two_view.complete(KEYS.apply(_common.state_dict_of(tree)))
    config = _two_view.decoder_config(
        _common.Shapes(tensors, KEYS, WHAT), read_constructor(tree.get("mast3r_model_str")), WHAT
    )
    inside = has_encoder(tree)
    return _common.Description(
        layout=NAME,
        kind=KIND,
        architecture=f"two-view decoder of width {config.width}, {config.depth} blocks, "
        f"{'with' if inside else 'for'} a DUNE encoder of width {config.encoder_width}",
        teachers=(),
        patch=14,
        width=config.encoder_width,
        parameters=_common.count(tensors),
        notes=() if inside else (f"needs the encoder file {encoder_file(tree)}",),
    )


def build(tree: Mapping[str, Any], vit: VisionTransformer | None = None) -> TwoViewModel:
    """The model on the encoder `vit`, or on the one inside the file. CheckpointError if the two do not fit."""
    state = _common.state_dict_of(tree)
    given: tuple[str, ...] = ()
    if vit is not None:
        state = _common.without(state, (BACKBONE,))
        given = ("encoder.vit.",)
    tensors = _two_view.complete(KEYS.apply(state))
    shapes = _common.Shapes(tensors, KEYS, WHAT)
    constructor = read_constructor(tree.get("mast3r_model_str"))
    decoder = _two_view.decoder_config(shapes, constructor, WHAT)
    if vit is not None and vit.width != decoder.encoder_width:
        raise CheckpointError(
            f"the decoder is for a DUNE encoder of width {decoder.encoder_width} ({encoder_file(tree)}); "
            f"the given one has width {vit.width}"
        )
    with torch.device("meta"):
        encoder = DunePatches(vit or VisionTransformer(vit_config(shapes, "encoder.vit.", "offset", WHAT)))
        head = _two_view.head_config(shapes, constructor, encoder.patch, WHAT)
        model = TwoViewModel(encoder, TwoViewDecoder(decoder), head)
    load_strict(model, tensors, KEYS, WHAT, given)
    return model


def export(tree: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The used tensors in official names, the encoder's name and the constructor string."""
    facts = {name: str(tree[name]) for name in ("dune_backbone_name", "mast3r_model_str") if name in tree}
    return _common.without(_common.state_dict_of(tree), KEYS.ignored), facts


def restore(tensors: dict[str, torch.Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The published tree again, from what `export` gave."""
    return {**facts, "model": dict(tensors)}
