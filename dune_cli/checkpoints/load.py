"""Name or file in, network with weights out: `load_encoder` and `load_two_view` (schemas: "Python")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dune_cli import runtime
from dune_cli.checkpoints import files, layouts, store
from dune_cli.checkpoints.layouts import dune_mast3r, timm_models
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.models.dpt import to_channels_last
from dune_cli.models.encoder import DistilledEncoder
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.models.two_view import TwoViewModel
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source

TAKES = {
    "encoder": "load_encoder (dune encode --model)",
    "two-view": "load_two_view (dune reconstruct --model)",
}


def load_encoder(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> nn.Module:
    """An encoder: DUNE, DINOv2, our own safetensors, or `timm:NAME` / `timm:NAME=FILE`.

    The module has `patch`, `width`, `teachers`, `source`, `forward(images, norm=True) -> Tokens` and
    `project(images, teacher) -> Tokens`. It is in evaluation mode and needs no gradients. `dtype` is that of the
    trunk's matrix products. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = _target(device, dtype)
    if str(name_or_path).startswith(timm_models.PREFIX):
        model, source = timm_models.load(str(name_or_path))
    else:
        model, source = _read(name_or_path, "encoder")
    return _finish(model, source, where, kind)


def load_two_view(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> TwoViewModel:
    """A two-view model: MASt3R, DUNE + MASt3R, or our own safetensors of either.

    `encoder`: name or file of the DUNE encoder of a DUNE + MASt3R decoder; without it the one that the decoder file
    names is looked for, beside that file and then among the weights. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = _target(device, dtype)
    model, source = _read(name_or_path, "two-view", encoder)
    return _finish(model, source, where, kind)


def _target(device: str, dtype: str) -> tuple[Any, Any]:
    where = runtime.pick_device(device)
    return where, runtime.pick_dtype(dtype, where)


def _finish(model: Any, source: Source, device: Any, dtype: Any) -> Any:
    model.eval().requires_grad_(False)
    to_channels_last(model)
    set_trunk_dtype(model, dtype)
    model.source = source
    return model.to(device)


def _read(name_or_path: str | Path, kind: str, encoder: str | Path | None = None) -> tuple[nn.Module, Source]:
    located = store.locate(name_or_path)
    file = files.read_weights(located.path)
    store.check(located, file.sha256)
    try:
        adapter, tree = layouts.published(file.tree, file.metadata)
        if kind != adapter.KIND:
            found = adapter.describe(tree, {})
            raise CheckpointError(
                f"it holds {adapter.WHAT} ({found.architecture}), not {_article(kind)} model; "
                f"{TAKES[adapter.KIND]} takes it"
            )
        if encoder is not None and adapter is not dune_mast3r:
            raise CheckpointError(f"it holds {adapter.WHAT}, which has its own encoder; leave encoder= (--encoder) out")
        model = adapter.build(tree) if adapter is not dune_mast3r else _on_dune(tree, located.path, encoder)
    except CheckpointError as error:
        raise CheckpointError(f"{located.path}: {error}") from error
    return model, _source(located, file)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _source(located: Any, file: files.WeightFile) -> Source:
    name = located.entry.name if located.entry else located.path.name
    licence = located.entry.licence if located.entry else file.metadata.get("dune.licence", "unknown")
    return Source(name, file.sha256, licence)


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
    model, _ = _read(encoder, "encoder")
    vit = model.vit if isinstance(model, DistilledEncoder) else model
    if not isinstance(vit, VisionTransformer):
        raise CheckpointError(f"{encoder} is no DUNE encoder")
    return dune_mast3r.build(tree, vit)
