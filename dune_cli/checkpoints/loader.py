"""Name or file in, network with weights out: `load`, and one typed function for each kind of network.

A name goes through: registry and weights_folder (where the file lies), weight_files (the one reader), adapters (which
layout it is), the adapter's `build` (the network, filled by state_dict.load_strict).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dune_cli import runtime
from dune_cli.checkpoints import adapters, hub, registry, timm_models, weight_files, weights_folder
from dune_cli.checkpoints.weight_files import WeightFile, naming_file
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.aliked import AlikedLightGlueNetwork
from dune_cli.models.depth_anything3 import MonocularDepth, MultiViewDepth
from dune_cli.models.dinov2_heads import Classifier, HeadDepth, Segmenter
from dune_cli.models.distilled_encoder import DistilledEncoder
from dune_cli.models.dpt import to_channels_last
from dune_cli.models.heads import HeadedEncoder
from dune_cli.models.loma import LomaNetwork
from dune_cli.models.mast3r import TwoViewDepth, TwoViewModel
from dune_cli.models.match_head import MatchHead
from dune_cli.models.multihmr_anny import MultiHmrAnny
from dune_cli.models.multihmr_smplx import MultiHmrSmplx
from dune_cli.models.people_head import HeadedPeople
from dune_cli.models.people_poses import PeopleNetwork
from dune_cli.models.precision import set_trunk_dtype
from dune_cli.provenance import Source

MultiHmr = MultiHmrSmplx | MultiHmrAnny
HumanNetwork = MultiHmr | PeopleNetwork | HeadedPeople

SCENE_HEAD = "dune-segment"  # the registry's segmentation head on dune-mini

# an adapter's KIND -> who loads such a file, for messages
_LOADERS = {
    "encoder": "load_encoder (dune encode --model)",
    "two-view": "load_two_view (dune reconstruct --model)",
    "multi-view": "load_multiview (dune reconstruct or depth --model)",
    "depth": "load_depth (dune depth --model)",
    "classifier": "load_classifier (dune classify --model)",
    "segmenter": "load_segmenter (dune segment --model)",
    "human": "load_human (dune human --model)",
    "matcher": "load_match_head (--matcher dune --model)",
    "keypoints": "load_aliked_lightglue (--matcher aliked-lightglue)",
    "detector-matcher": "load_loma (--matcher loma-b128)",
    "head": "load_head (dune depth, segment or classify --model)",
}


def load(
    name_or_path: str | Path,
    kind: str,
    device: str = "auto",
    dtype: str = "float32",
    encoder: str | Path | None = None,
) -> nn.Module:
    """The network of `kind` (an adapter's KIND) behind a registry name or a file, in evaluation mode.

    `dtype` is that of the matrix products of transformer trunks. `encoder`: name or file of the encoder, where the
    network stands on one from a second file; without it the published one is looked for, beside the file and then among
    the weights. Raises WeightsMissing, CheckpointError, UserError.
    """
    torch_device, torch_dtype = device_and_dtype(device, dtype)
    opened = open_checkpoint(name_or_path, kind)
    return to_inference(_build(opened, encoder), opened.file.source, torch_device, torch_dtype)


def load_encoder(name_or_path: str | Path, device: str = "auto", dtype: str = "float32") -> nn.Module:
    """An encoder: DUNE, DINOv2, our own safetensors, or `timm:NAME` / `timm:NAME=FILE`.

    The module has `patch`, `width`, `teachers`, `source`, `forward(images, norm=True) -> Tokens` and
    `project(images, teacher) -> Tokens`. It is in evaluation mode and needs no gradients. `dtype` is that of the
    trunk's matrix products. Raises WeightsMissing, CheckpointError, UserError.
    """
    if str(name_or_path).startswith(timm_models.PREFIX):
        torch_device, torch_dtype = device_and_dtype(device, dtype)
        model, source = timm_models.load(str(name_or_path))
        return to_inference(model, source, torch_device, torch_dtype)
    return load(name_or_path, "encoder", device, dtype)


def load_two_view(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> TwoViewModel:
    """A two-view model: MASt3R, DUNE + MASt3R, or our own safetensors of either.

    `encoder`: name or file of the DUNE encoder of a DUNE + MASt3R decoder; without it the one that the decoder file
    names is looked for, beside that file and then among the weights. Raises WeightsMissing, CheckpointError, UserError.

    "auto" is float32 here: in bfloat16 the tokens of a trained ViT-S/14 moved by 0.5-0.7 % in the median, but 1-23 % of
    a photo's tokens by more than 1 % (examples/dtype_deviation.py), and geometry is made of them.
    """
    return load(name_or_path, "two-view", device, "float32" if dtype == "auto" else dtype, encoder)


def load_depth(
    name_or_path: str | Path,
    encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    depth_range: tuple[float, float] | None = None,
) -> HeadDepth | TwoViewDepth | HeadedEncoder | MonocularDepth | MultiViewDepth:
    """A depth model: `model(images, flip=False)`, images (B, 3, H, W) of any sides -> z (B, H, W) in metres.

    One of DINOv2's depth heads, on `encoder` (a name or file; without it the one that the head's name tells, beside
    the head and then among the weights), or a two-view model, which sees the image twice.
    `depth_range`: (minimum, maximum) in metres of a head instead of the published one (0.001 to 10 for NYU, to 80 for
    KITTI). DINOv2's own hub function builds the linear NYU heads with 80: pass (0.001, 80) to get its numbers.
    `dtype` "auto" is float32 for a two-view model.

    Depth Anything 3 is taken too (docs/models/depth-anything-3.md): DA3METRIC-LARGE, `model(images, intrinsics=K)`, is
    in metres with intrinsics and relative without; DA3MONO-LARGE and the multi-view models, one image at a time, are
    relative.

    A head of `dune train` (models/heads.py) is taken too; it gets the bundled segmentation head as its `scene` where
    both read the same encoder. Raises WeightsMissing, CheckpointError, UserError.
    """
    opened = open_checkpoint(name_or_path, "depth", "two-view", "multi-view", "head")
    if opened.adapter.KIND == "head":
        if depth_range is not None:
            raise UserError("a depth range belongs to a DINOv2 depth head; leave it out")
        return _with_scene(load_head(name_or_path, "depth", encoder, device, dtype))
    kind = opened.adapter.KIND
    exact = kind in ("two-view", "multi-view") and dtype == "auto"
    torch_device, torch_dtype = device_and_dtype(device, "float32" if exact else dtype)
    has_range = kind == "depth" and hasattr(opened.adapter, "ENCODERS")
    what = "a two-view model" if kind == "two-view" else opened.adapter.WHAT
    if depth_range is not None and not has_range:
        raise UserError(f"a depth range belongs to a DINOv2 depth head; {what} has none: leave it out")
    model: HeadDepth | TwoViewDepth | MonocularDepth | MultiViewDepth
    if has_range:
        model = _build(opened, encoder, depth_range=depth_range)
    elif kind == "two-view":
        model = TwoViewDepth(_build(opened, encoder))
        model.model.source = opened.file.source
    elif kind == "multi-view":
        model = MultiViewDepth(_build(opened, encoder))
        model.network.source = opened.file.source
    else:
        model = _build(opened, encoder)
    return to_inference(model, opened.file.source, torch_device, torch_dtype)


def load_classifier(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Classifier | HeadedEncoder:
    """One of DINOv2's ImageNet heads: `model(images)`, images (B, 3, H, W) -> logits (B, classes).

    The published preparation is short side 256, centre crop 224. `encoder` as in `load_depth`. A head of `dune train`
    is taken too.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_or_head(name_or_path, "classifier", "classification", encoder, device, dtype)


def load_segmenter(
    name_or_path: str | Path, encoder: str | Path | None = None, device: str = "auto", dtype: str = "float32"
) -> Segmenter | HeadedEncoder:
    """One of DINOv2's linear segmentation heads: `model(images)`, any sides -> logits (B, classes, H, W).

    `model.slide(images)`: by the published windows; `model.probabilities(images)`: the whole protocol with its scales.
    `encoder` as in `load_depth`. A head of `dune train` is taken too.
    Raises WeightsMissing, CheckpointError, UserError.
    """
    return _load_or_head(name_or_path, "segmenter", "segmentation", encoder, device, dtype)


def load_head(
    name_or_path: str | Path,
    task: str,
    encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> HeadedEncoder:
    """A head of `dune train` on its encoder, for "depth", "segmentation" or "classification" (models/heads.py).

    `encoder`: name or file of the encoder that it was trained on; without it the one that the head's file names is
    looked for, beside it and then among the weights. Raises WeightsMissing, CheckpointError (another task, another
    encoder), UserError.
    """
    opened = open_checkpoint(name_or_path, "head")
    torch_device, torch_dtype = device_and_dtype(device, dtype)
    return to_inference(_build(opened, encoder, task=task), opened.file.source, torch_device, torch_dtype)


def _load_or_head(
    name_or_path: str | Path, kind: str, task: str, encoder: str | Path | None, device: str, dtype: str
) -> Any:
    opened = open_checkpoint(name_or_path, kind, "head")
    if opened.adapter.KIND == "head":
        return load_head(name_or_path, task, encoder, device, dtype)
    return load(name_or_path, kind, device, dtype, encoder)


def _with_scene(model: HeadedEncoder) -> HeadedEncoder:
    """A depth head with the bundled segmentation head, if that is here and reads the same encoder."""
    entry = registry.find(SCENE_HEAD)
    located = weights_folder.find_present(entry) if entry is not None else None
    if located is None or model.encoder.source.sha256 != model.card.encoder_sha256:
        return model
    scene = open_checkpoint(SCENE_HEAD, "head")
    if scene.adapter.read_card(scene.checkpoint).encoder_sha256 != model.card.encoder_sha256:
        return model
    built = scene.adapter.build(scene.checkpoint, model.encoder, task="segmentation")
    model.scene = built.eval().requires_grad_(False)
    model.scene.source = scene.file.source
    return model


def load_human_network(
    name_or_path: str | Path, device: str = "auto", dtype: str = "float32", encoder: str | Path | None = None
) -> HumanNetwork:
    """Multi-HMR on SMPL-X or on Anny, our own safetensors of either, the networks of joints that come with dune, or a
    head of `dune train human`; `tasks/human` joins it with its body model. `encoder`: of a head, as in `load_depth`.

    Multi-HMR and heads have `size_px` (the square's side), `body` ("smplx" or "anny"), `backbone`, `source` and
    `forward(images, K, min_score) -> list[Detections]`. Raises WeightsMissing, CheckpointError, UserError.
    """
    return load(name_or_path, "human", device, dtype, encoder)


def load_match_head(name_or_path: str | Path, device: str = "auto") -> MatchHead:
    """The trained head of the matcher `dune`, in float32. Raises WeightsMissing, CheckpointError, UserError."""
    return load(name_or_path, "matcher", device)


def load_aliked_lightglue(
    name_or_path: str | Path, device: str = "auto", dtype: str = "auto"
) -> AlikedLightGlueNetwork:
    """ALIKED, always in float32, and LightGlue, whose matrix products are in `dtype`.

    Raises WeightsMissing, CheckpointError, UserError.
    """
    return load(name_or_path, "keypoints", device, dtype)


def load_loma(name_or_path: str | Path, device: str = "auto", dtype: str = "auto") -> LomaNetwork:
    """LoMa's detector, descriptor and matcher.

    On a GPU convolutions and the matcher's matrix products are in `dtype`. On CPUs "auto" is float32, and convolutions
    always are: bfloat16 ones are many times slower there. Raises WeightsMissing, CheckpointError, UserError.
    """
    torch_device, torch_dtype = device_and_dtype(device, dtype)
    if torch_device.type == "cuda":
        return load(name_or_path, "detector-matcher", device, dtype).convolve_in(torch_dtype)
    return load(name_or_path, "detector-matcher", device, "float32" if dtype == "auto" else dtype)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A weight file of a known layout: the file, its adapter, its checkpoint as the published layout has it."""

    file: WeightFile
    adapter: ModuleType
    checkpoint: Mapping[str, Any]


def open_checkpoint(name_or_path: str | Path, *kinds: str) -> OpenedCheckpoint:
    """The file behind a registry name or path, checked against its pinned hash, of one of `kinds`.

    Raises WeightsMissing, CheckpointError (for another kind: what the file holds and who loads it), UserError.
    """
    file = weight_files.open_weights(name_or_path)
    with naming_file(file.path):
        adapter, checkpoint = adapters.identify(file.checkpoint, file.metadata, file.surroundings)
        if adapter.KIND not in kinds:
            named = [kind for kind in kinds if kind != "head"] or list(kinds)  # a head serves one of the other kinds
            *first, last = (f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in named)
            wanted = f"{', '.join(first)} or {last}" if first else last
            loader = _LOADERS.get(adapter.KIND, f"load(..., kind={adapter.KIND!r})")
            raise CheckpointError(
                f"it holds {adapter.WHAT} ({adapter.describe(checkpoint).architecture}), not {wanted} model; "
                f"{loader} takes it"
            )
    return OpenedCheckpoint(file, adapter, checkpoint)


def device_and_dtype(device: str, dtype: str) -> tuple[Any, Any]:
    """(torch.device, torch.dtype) of the words that loaders take. UserError for others."""
    torch_device = runtime.pick_device(device)
    return torch_device, runtime.pick_dtype(dtype, torch_device)


def to_inference(model: Any, source: Source, device: Any, dtype: Any) -> Any:
    """The network in evaluation mode, without gradients, in its number types, on its device."""
    model.eval().requires_grad_(False)
    to_channels_last(model)
    set_trunk_dtype(model, dtype)
    model.source = source
    return model.to(device)


def _build(opened: OpenedCheckpoint, encoder: str | Path | None, **options: Any) -> Any:
    """The network with its weights, on the CPU; `options` go to the adapter's `build`."""
    adapter, file = opened.adapter, opened.file
    with naming_file(file.path):
        if not hasattr(adapter, "ENCODERS"):
            if encoder is not None:
                raise CheckpointError(
                    f"it holds {adapter.WHAT}, which has its own encoder; leave encoder= (--encoder) out"
                )
            return adapter.build(opened.checkpoint, **options)
        if encoder is None:
            encoder_file = adapter.encoder_file(opened.checkpoint, file.published_name)
            if encoder_file is None:
                return adapter.build(opened.checkpoint, **options)
    if encoder is None:
        encoder = _find_encoder(file.path, encoder_file)
    network = _load_encoder_of(opened, encoder)
    with naming_file(file.path):
        return adapter.build(opened.checkpoint, network, file.published_name, **options)


def _find_encoder(path: Path, encoder_file: str) -> str | Path:
    """Where the encoder that the file at `path` needs lies: on the hub, beside it, else among the weights."""
    if hub.is_hub(encoder_file):
        return encoder_file
    entry = registry.find_file(encoder_file)
    names = [
        encoder_file,
        str(Path(encoder_file).with_suffix(".safetensors")),
        *([entry.converted_file] if entry else []),
    ]
    beside = next((candidate for candidate in map(path.with_name, names) if candidate.is_file()), None)
    if beside is not None:
        return beside
    if entry is None:
        raise WeightsMissing(f"{path} needs its encoder {encoder_file}, which is not beside it; give it with --encoder")
    try:
        weights_folder.locate(entry.name)
    except WeightsMissing as error:
        raise WeightsMissing(f"{path} needs its encoder {encoder_file}: {error}") from error
    return entry.name


def _load_encoder_of(opened: OpenedCheckpoint, encoder: str | Path) -> nn.Module:
    """The network that the one of `opened` stands on, without projectors, with its weights, on the CPU."""
    adapter = opened.adapter
    if str(encoder).startswith(timm_models.PREFIX) and "timm" in adapter.ENCODERS:
        network, network.source = timm_models.load(str(encoder))
        return network
    found = open_checkpoint(encoder, "encoder")
    if found.adapter.NAME not in adapter.ENCODERS:
        needed = f"an encoder of the layout {' or '.join(adapter.ENCODERS)}"
        with contextlib.suppress(CheckpointError):
            encoder_file = adapter.encoder_file(opened.checkpoint, opened.file.published_name)
            needed += f" ({encoder_file})" if encoder_file else ""
        raise CheckpointError(f"{found.file.path}: it holds {found.adapter.WHAT}; {adapter.WHAT} needs {needed}")
    network = _build(found, None)
    vit = network.vit if isinstance(network, DistilledEncoder) else network
    vit.source = found.file.source
    return vit
