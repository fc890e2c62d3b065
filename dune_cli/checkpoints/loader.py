"""Name or file in, network with weights out: `load_encoder` and `load_two_view` (schemas: "Python")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli.checkpoints import registry, timm_models, weights_folder
from dune_cli.checkpoints.adapters import _dinov2_heads, dinov2_depth, dune_mast3r
from dune_cli.checkpoints.resolve import (
    OpenedWeights,
    device_and_dtype,
    naming_file,
    open_weights,
    require_kind,
    to_inference,
)
from dune_cli.checkpoints.third_party import load_wanted, open_lighter_glue, open_xfeat
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.depth import HeadDepth, TwoViewDepth
from dune_cli.models.dinov2_heads import Classifier, Segmenter
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.models.mast3r import TwoViewModel
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.models.multihmr_anny import MultiHmrAnny
from dune_cli.models.multihmr_smplx import MultiHmrSmplx
from dune_cli.models.vit import VisionTransformer
from dune_cli.provenance import Source


def load_encoder(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> nn.Module:
    """An encoder: DUNE, DINOv2, our own safetensors, or `timm:NAME` / `timm:NAME=FILE`.

    The module has `patch`, `width`, `teachers`, `source`, `forward(images, norm=True) -> Tokens` and
    `project(images, teacher) -> Tokens`. It is in evaluation mode and needs no gradients. `dtype` is that of the
    trunk's matrix products. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = device_and_dtype(device, dtype)
    if str(name_or_path).startswith(timm_models.PREFIX):
        model, source = timm_models.load(str(name_or_path))
    else:
        model, source = _read_encoder(name_or_path)
    return to_inference(model, source, where, kind)


def load_two_view(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> TwoViewModel:
    """A two-view model: MASt3R, DUNE + MASt3R, or our own safetensors of either.

    `encoder`: name or file of the DUNE encoder of a DUNE + MASt3R decoder; without it the one that the decoder file
    names is looked for, beside that file and then among the weights. Raises WeightsMissing, CheckpointError, UserError.

    "auto" is float32 here: in bfloat16 the tokens of a trained ViT-S/14 moved by 0.5-0.7 % in the median, but 1-23 % of
    a photo's tokens by more than 1 % (examples/dtype_deviation.py), and geometry is made of them.
    """
    where, kind = device_and_dtype(device, "float32" if dtype == "auto" else dtype)
    opened = open_weights(name_or_path)
    require_kind(opened, "two-view")
    return to_inference(two_view_of(opened, encoder), opened.source, where, kind)


def two_view_of(opened: OpenedWeights, encoder: str | Path | None) -> TwoViewModel:
    """The network in an opened two-view file, with its weights, on the CPU; `encoder` as in `load_two_view`."""
    adapter, tree = opened.adapter, opened.tree
    with naming_file(opened.path):
        if adapter is dune_mast3r:
            return _on_dune(tree, opened.path, encoder)
        if encoder is not None:
            raise CheckpointError(f"it holds {adapter.WHAT}, which has its own encoder; leave encoder= (--encoder) out")
        return adapter.build(tree)


def _read_encoder(name_or_path: str | Path) -> tuple[nn.Module, Source]:
    opened = open_weights(name_or_path)
    require_kind(opened, "encoder")
    with naming_file(opened.path):
        return opened.adapter.build(opened.tree), opened.source


def _on_dune(tree: Mapping[str, Any], path: Path, encoder: str | Path | None) -> TwoViewModel:
    if encoder is None and dune_mast3r.has_encoder(tree):
        return dune_mast3r.build(tree)
    if encoder is None:
        name = dune_mast3r.encoder_file(tree)
        beside = [path.with_name(name), path.with_name(name).with_suffix(".safetensors")]
        encoder = next((candidate for candidate in beside if candidate.is_file()), name)
        try:
            weights_folder.locate(encoder)
        except WeightsMissing as error:
            raise WeightsMissing(f"{path} needs its DUNE encoder {name}: {error}") from error
    model, _ = _read_encoder(encoder)
    vit = model.vit if isinstance(model, DistilledEncoder) else model
    if not isinstance(vit, VisionTransformer):
        raise CheckpointError(f"{encoder} is no DUNE encoder")
    return dune_mast3r.build(tree, vit)


# Name or file of a head in, encoder with head and weights out: `load_depth`, `load_classifier`, `load_segmenter`.


def load_depth(
    name_or_path: str | Path,
    encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    depth_range: tuple[float, float] | None = None,
) -> HeadDepth | TwoViewDepth:
    """A depth model: `model(images, flip=False)`, images (B, 3, H, W) of any sides -> z (B, H, W) in metres.

    One of DINOv2's depth heads, on `encoder` (a name or file; without it the one that the head's name tells, beside
    the head and then among the weights), or a two-view model, which sees the image twice.
    `depth_range`: (minimum, maximum) in metres of a head instead of the published one (0.001 to 10 for NYU, to 80 for
    KITTI). DINOv2's own hub function builds the linear NYU heads with 80: pass (0.001, 80) to get its numbers.
    `dtype` "auto" is float32 for a two-view model.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    opened = open_weights(name_or_path)
    require_kind(opened, "depth", "two-view")
    if opened.adapter.KIND == "two-view" and dtype == "auto":
        dtype = "float32"  # geometry: as `load_two_view`
    where, kind = device_and_dtype(device, dtype)
    if opened.adapter.KIND == "two-view":
        if depth_range is not None:
            raise UserError("a depth range belongs to a depth head; a two-view model has none: leave it out")
        model: Any = TwoViewDepth(two_view_of(opened, encoder))
        model.model.source = opened.source
    else:
        depth_range = depth_range or _range_of(opened)
        network = _encoder_of(opened, encoder)
        with naming_file(opened.path):
            model = dinov2_depth.build(opened.tree, network, depth_range)
    return to_inference(model, opened.source, where, kind)


def load_classifier(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Classifier:
    """One of DINOv2's ImageNet heads: `model(images)`, images (B, 3, H, W) -> logits (B, classes).

    The published preparation is short side 256, centre crop 224. `encoder` as in `load_depth`.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_head(name_or_path, encoder, device, dtype, "classifier")


def load_segmenter(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Segmenter:
    """One of DINOv2's linear segmentation heads: `model(images)`, any sides -> logits (B, classes, H, W).

    `model.slide(images)`: by the published windows; `model.probabilities(images)`: the whole protocol with its scales.
    `encoder` as in `load_depth`. Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_head(name_or_path, encoder, device, dtype, "segmenter")


def _load_head(name_or_path: str | Path, encoder: str | Path | None, device: str, dtype: str, wanted: str) -> Any:
    where, kind = device_and_dtype(device, dtype)
    opened = open_weights(name_or_path)
    require_kind(opened, wanted)
    network = _encoder_of(opened, encoder)
    with naming_file(opened.path):
        model = opened.adapter.build(opened.tree, network)
    return to_inference(model, opened.source, where, kind)


def _published_name(opened: OpenedWeights) -> _dinov2_heads.PublishedName | None:
    entry = opened.located.entry
    return _dinov2_heads.published_name(entry.file if entry else opened.path.name)


def _range_of(opened: OpenedWeights) -> tuple[float, float]:
    """From the published name, else from the configuration text inside the file."""
    name = _published_name(opened)
    found = dinov2_depth.RANGES.get(name.data or "") if name else dinov2_depth.stated_range(opened.tree)
    if found is None:
        raise UserError(
            f"the depth range of {opened.path} is told neither by its name (..._nyu_..., ..._kitti_...) nor inside; "
            "give it: --depth-range 0.001,10 is NYU's and 0.001,80 KITTI's (metres)"
        )
    return found


def _encoder_of(opened: OpenedWeights, encoder: str | Path | None) -> VisionTransformer:
    """The DINOv2 encoder of a head, with its weights, on the CPU."""
    name = _published_name(opened)
    found = open_weights(_find_encoder(opened, name) if encoder is None else encoder)
    require_kind(found, "encoder")
    if found.adapter.NAME != "dinov2":
        raise CheckpointError(
            f"{found.path}: it holds {found.adapter.WHAT}; DINOv2's published heads read DINOv2's own encoder"
            + (f", {name.encoder_file}" if name else "")
        )
    with naming_file(found.path):
        network = found.adapter.build(found.tree)
    network.source = found.source
    with naming_file(opened.path):
        _dinov2_heads.check_encoder(network, name)
    return network


def _find_encoder(opened: OpenedWeights, name: _dinov2_heads.PublishedName | None) -> str | Path:
    """Where the encoder that the head's name tells lies: beside the head, else among the weights."""
    if name is None:
        raise UserError(
            f"the name of {opened.path} does not tell which encoder it belongs to; give it with --encoder (encoder=)"
        )
    entry = registry.find_file(name.encoder_file)
    names = [name.encoder_file] + ([entry.converted_file] if entry else [])
    beside = [path for path in map(opened.path.with_name, names) if path.is_file()]
    if beside:
        return beside[0]
    if entry is None:
        raise WeightsMissing(
            f"{opened.path} needs its encoder {name.encoder_file}, which is not beside it; give it with --encoder"
        )
    try:
        weights_folder.locate(entry.name)
    except WeightsMissing as error:
        raise WeightsMissing(f"{opened.path} needs its encoder: {error}") from error
    return entry.name


# The networks of the human heads, by name or file; `tasks/human.py` joins them with their body models.


HumanNetwork = MultiHmrSmplx | MultiHmrAnny


def load_human_network(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> HumanNetwork:
    """Multi-HMR on SMPL-X or on Anny, or our own safetensors of either, in evaluation mode.

    It has `size_px` (the square's side), `body` ("smplx" or "anny"), `backbone`, `source` and
    `forward(images, K, min_score) -> list[Detections]`. Raises WeightsMissing, CheckpointError, UserError.
    """
    where, kind = device_and_dtype(device, dtype)
    opened = open_weights(name_or_path)
    require_kind(opened, "human")
    with naming_file(opened.path):
        network = opened.adapter.build(opened.tree)
    return to_inference(network, opened.source, where, kind)


# The head of the matcher `dune`: read from its file, or begun from open weights (XFeat, LighterGlue; Apache-2.0).


def load_match_head(name_or_path: str | Path, device: str = "auto") -> MatchHead:
    """A trained head. Raises WeightsMissing, CheckpointError, UserError."""
    where, kind = device_and_dtype(device, "float32")
    opened = open_weights(name_or_path)
    require_kind(opened, "matcher")
    with naming_file(opened.path):
        head = opened.adapter.build(opened.tree)
    return to_inference(head, opened.source, where, kind)


def begin_match_head(config: MatchHeadConfig, seed: int) -> tuple[MatchHead, dict[str, Source]]:
    """XFeat's detector and LighterGlue in a new head, whose other layers are drawn by `seed`; where they came from.

    CheckpointError where a file does not fit.
    """
    head = new_match_head(config, seed)
    detector, glue = open_xfeat(), open_lighter_glue()
    load_wanted(head.detector, detector.tree, "the file of xfeat does not fit the matching head")
    load_wanted(head.glue, glue.tree, "the file of xfeat-lighterglue does not fit the matching head")
    return head, {file.source.name: file.source for file in (detector, glue)}


def new_match_head(config: MatchHeadConfig, seed: int) -> MatchHead:
    """A head with random weights, drawn by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MatchHead(config)


def continue_match_head(config: MatchHeadConfig, seed: int, start: MatchHead) -> MatchHead:
    """A new head that goes on from `start`, also where its context has other parts: what is new enters as zero."""
    head = new_match_head(config, seed)
    old = start.state_dict()
    wanted = {key: old.get(key, value) for key, value in head.state_dict().items()}
    load_wanted(head, wanted, "the head to start from has other sizes")
    return head
