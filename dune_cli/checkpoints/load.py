"""Name or file in, network with weights out: `load_encoder` and `load_two_view` (schemas: "Python")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dune_cli.checkpoints import store
from dune_cli.checkpoints.layouts import dune_mast3r, timm_models
from dune_cli.checkpoints.opened import Opened, expect, finish, naming, open_weights, target
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.models.two_view import TwoViewModel
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


def load_encoder(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> nn.Module:
    """An encoder: DUNE, DINOv2, our own safetensors, or `timm:NAME` / `timm:NAME=FILE`.

    The module has `patch`, `width`, `teachers`, `source`, `forward(images, norm=True) -> Tokens` and
    `project(images, teacher) -> Tokens`. It is in evaluation mode and needs no gradients. `dtype` is that of the
    trunk's matrix products. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = target(device, dtype)
    if str(name_or_path).startswith(timm_models.PREFIX):
        model, source = timm_models.load(str(name_or_path))
    else:
        model, source = _read_encoder(name_or_path)
    return finish(model, source, where, kind)


def load_two_view(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> TwoViewModel:
    """A two-view model: MASt3R, DUNE + MASt3R, or our own safetensors of either.

    `encoder`: name or file of the DUNE encoder of a DUNE + MASt3R decoder; without it the one that the decoder file
    names is looked for, beside that file and then among the weights. Raises WeightsMissing, CheckpointError, UserError.

    "auto" is float32 here: in bfloat16 the tokens of a trained ViT-S/14 moved by 0.5-0.7 % in the median, but 1-23 % of
    a photo's tokens by more than 1 % (examples/dtype_deviation.py), and geometry is made of them.
    """
    where, kind = target(device, "float32" if dtype == "auto" else dtype)
    opened = open_weights(name_or_path)
    expect(opened, "two-view")
    return finish(two_view_of(opened, encoder), opened.source, where, kind)


def two_view_of(opened: Opened, encoder: str | Path | None) -> TwoViewModel:
    """The network in an opened two-view file, with its weights, on the CPU; `encoder` as in `load_two_view`."""
    adapter, tree = opened.adapter, opened.tree
    with naming(opened.path):
        if adapter is dune_mast3r:
            return _on_dune(tree, opened.path, encoder)
        if encoder is not None:
            raise CheckpointError(f"it holds {adapter.WHAT}, which has its own encoder; leave encoder= (--encoder) out")
        return adapter.build(tree)


def _read_encoder(name_or_path: str | Path) -> tuple[nn.Module, Source]:
    opened = open_weights(name_or_path)
    expect(opened, "encoder")
    with naming(opened.path):
        return opened.adapter.build(opened.tree), opened.source


def _on_dune(tree: Mapping[str, Any], path: Path, encoder: str | Path | None) -> TwoViewModel:
    if encoder is None and dune_mast3r.has_encoder(tree):
        return dune_mast3r.build(tree)
    if encoder is None:
        name = dune_mast3r.encoder_file(tree)
        beside = [path.with_name(name), path.with_name(name).with_suffix(".safetensors")]
        encoder = next((candidate for candidate in beside if candidate.is_file()), name)
        try:
            store.locate(encoder)
        except WeightsMissing as error:
            raise WeightsMissing(f"{path} needs its DUNE encoder {name}: {error}") from error
    model, _ = _read_encoder(encoder)
    vit = model.vit if isinstance(model, DistilledEncoder) else model
    if not isinstance(vit, VisionTransformer):
        raise CheckpointError(f"{encoder} is no DUNE encoder")
    return dune_mast3r.build(tree, vit)
