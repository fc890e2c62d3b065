"""What is exported of a model: a module of tensors in and tensors out, with names and facts of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli.checkpoints import loader
from dune_cli.checkpoints.timm_models import PREFIX
from dune_cli.errors import UserError
from dune_cli.export.whole_strides import with_whole_strides
from dune_cli.models.depth_anything3 import PROCESS_SIZE_PX, MonocularDepth, MultiViewDepth
from dune_cli.models.dinov2_heads import HeadDepth, Segmenter
from dune_cli.models.dune_mini import MiniEncoder
from dune_cli.models.heads import HeadedEncoder, bare
from dune_cli.models.mast3r import CrocoEncoder, TwoViewDepth, TwoViewModel
from dune_cli.models.patch_embed import HALF, IMAGENET_MEAN, IMAGENET_STD
from dune_cli.models.timm_encoder import TimmEncoder
from dune_cli.provenance import Source

KINDS = ("encoder", "depth", "segment", "two-view")
FIXED_SIZE = (
    "{} cannot be exported: timm's encoders fix the size of the image; export an encoder of 'dune weights list', a "
    "file of one, or a head on it"
)
VIEW_OUTPUTS = ("points", "confidence", "descriptors", "descriptor_confidence")


@dataclass(frozen=True)
class ExportNetwork:
    """A network as it is exported.

    module: images (B, 3, H, W) RGB in [0, 1], one tensor an input -> a tuple of tensors, in the order of `outputs`.
    original: the same by the model as it was loaded. outputs: name -> shape and meaning. patch: what H and W are
    multiples of. size_px: the long side to use where none is asked for. facts: what a user of the outputs needs.
    """

    kind: str
    module: nn.Module
    original: nn.Module
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    patch: int
    size_px: int
    sources: list[Source]
    facts: dict[str, Any] = field(default_factory=dict)


class EncoderOutputs(nn.Module):
    """An encoder's tokens; without registers where it has none."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.encoder(images)
        registers = (tokens.registers,) if tokens.registers.shape[1] else ()
        return (tokens.cls, *registers, tokens.map())


class HeadOutputs(nn.Module):
    """The result of a head of `dune train`, and that of its scene head if it has one."""

    def __init__(self, model: HeadedEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result, scene = self.model.with_scene(images)
        return (result,) if scene is None else (result, scene)


class RawOutputs(nn.Module):
    """What a model's `raw` gives: one map, or the maps of Depth Anything 3."""

    def __init__(self, model: HeadDepth | Segmenter | MonocularDepth) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raw = self.model.raw(images)
        return (raw,) if isinstance(raw, torch.Tensor) else (raw.depth, raw.sky)


class SingleViewOutputs(nn.Module):
    """A multi-view model, each image a scene of its own."""

    def __init__(self, model: MultiViewDepth) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.model.network(images, alone=True)
        return out.depth, out.confidence, out.K


class TwoViewOutputs(nn.Module):
    """Both views of a two-view model."""

    def __init__(self, model: TwoViewModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images1: torch.Tensor, images2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.model.decode(self.model.encode(images1), self.model.encode(images2))
        return tuple(getattr(out, f"{name}{view}") for view in (1, 2) for name in VIEW_OUTPUTS)


def load_network(kind: str, name_or_path: str | Path, encoder: str | Path | None = None) -> ExportNetwork:
    """The network of a model that `dune encode`, `depth`, `segment` or `reconstruct` takes, in float32 on the CPU.

    UserError for a model that cannot be exported; WeightsMissing and CheckpointError as the loaders.
    """
    if str(name_or_path).startswith(PREFIX):
        raise UserError(FIXED_SIZE.format(name_or_path))
    if kind == "encoder":
        if encoder is not None:
            raise UserError(f"--encoder {encoder} belongs to a head or a two-view model; leave it out")
        return network_of(kind, loader.load_encoder(name_or_path, "cpu"))
    load = {"depth": loader.load_depth, "segment": loader.load_segmenter, "two-view": loader.load_two_view}[kind]
    model = load(name_or_path, encoder, "cpu")
    if any(isinstance(part, TimmEncoder) for part in model.modules()):
        raise UserError(FIXED_SIZE.format(name_or_path))
    return network_of(kind, model)


def network_of(kind: str, model: Any) -> ExportNetwork:
    """The network of a loaded model. UserError for one that cannot be exported as `kind`."""
    inputs: tuple[str, ...] = ("images",)
    facts: dict[str, Any] = {}
    make: type[nn.Module]
    if kind == "encoder":
        make, trunk, size_px = EncoderOutputs, model, model.native_size_px
        registers = {"registers": "(B, R, D) register tokens"} if _registers(model) else {}
        outputs = {"cls": "(B, D) CLS token", **registers, "patches": "(B, H/patch, W/patch, D) patch tokens"}
    elif isinstance(model, HeadedEncoder):
        make, trunk, size_px = HeadOutputs, model.encoder, model.card.size_px
        scale = model.config.output_scale
        if kind == "depth":
            facts["canonical_focal_px"] = model.config.canonical_focal_px
            text = "logarithm of depth z; depth in metres = exp(log_depth) * focal_px / canonical_focal_px"
            outputs = {"log_depth": f"(B, 1, {scale} H/patch, {scale} W/patch) {text}"}
            if model.scene is not None:
                outputs["scene_logits"] = "(B, C, h, w) logits of the scene's classes"
                facts["scene_classes"] = list(model.scene.class_names)
        else:
            outputs = {"logits": f"(B, C, {scale} H/patch, {scale} W/patch) class logits"}
            facts["classes"] = list(model.class_names)
    elif isinstance(model, HeadDepth):
        make, trunk, size_px = RawOutputs, model.encoder, model.encoder.native_size_px
        facts["depth_range_m"] = [model.minimum, model.maximum]
        outputs = {"depth": "(B, h, w) depth z in metres before the clamp to depth_range_m, at the head's resolution"}
    elif isinstance(model, Segmenter):
        make, trunk, size_px = RawOutputs, model.encoder, model.encoder.native_size_px
        facts["classes"] = list(model.class_names)
        outputs = {"logits": "(B, C, H/patch, W/patch) class logits, the image as one window"}
    elif isinstance(model, MonocularDepth):
        make, trunk, size_px = RawOutputs, model.backbone, PROCESS_SIZE_PX
        unit = "metres at a focal length of 300 px" if model.metric else "relative"
        outputs = {"depth": f"(B, H, W) depth z, {unit}; the sky is not filled", "sky": "(B, H, W) sky, from 0 up"}
    elif isinstance(model, MultiViewDepth):
        make, trunk, size_px = SingleViewOutputs, model.network.backbone, PROCESS_SIZE_PX
        outputs = {
            "depth": "(B, H, W) relative depth z",
            "confidence": "(B, H, W) from 1 up",
            "K": "(B, 3, 3) pixels measured from the image's corner",
        }
    elif isinstance(model, TwoViewModel):
        make, trunk, size_px = TwoViewOutputs, model.encoder, model.size
        inputs = ("images1", "images2")
        meaning = {
            "points": "(B, H, W, 3) points in camera 1's frame",
            "confidence": "(B, H, W) from 1 up",
            "descriptors": "(B, H, W, C) of unit length",
            "descriptor_confidence": "(B, H, W)",
        }
        outputs = {f"{name}{view}": meaning[name] for view in (1, 2) for name in VIEW_OUTPUTS}
    else:
        what = "a two-view model: export it as two-view" if isinstance(model, TwoViewDepth) else "no model of its kind"
        raise UserError(f"{model.source.name} cannot be exported as {kind}; it is {what}")
    facts |= _normalisation(bare(trunk))
    sources = getattr(model, "sources", [model.source])
    exported = make(with_whole_strides(model)).eval()
    return ExportNetwork(
        kind, exported, make(model).eval(), inputs, outputs, trunk.patch, size_px, list(sources), facts
    )


def _registers(encoder: nn.Module) -> int:
    return bare(encoder).config.registers


def _normalisation(trunk: nn.Module) -> dict[str, Any]:
    """Mean and deviation that the graph itself subtracts and divides by."""
    if isinstance(trunk, MiniEncoder):
        text = "by each part of the stem, in the graph"
        return {"normalisation": text, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    mean, std = (HALF, HALF) if isinstance(trunk, CrocoEncoder) else (IMAGENET_MEAN, IMAGENET_STD)
    return {"normalisation": "in the graph", "mean": list(mean), "std": list(std)}
