"""DINOv2's depth heads, linear and DPT: {'meta', 'state_dict', 'optimizer'} (docs/models/dinov2-heads.md, "Depth")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _dinov2_heads
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict
from dune_cli.errors import CheckpointError
from dune_cli.models.dinov2_heads import Dinov2DptConfig, Dinov2DptHead, HeadDepth, LinearDepthHead
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2-depth"
KIND = "depth"
WHAT = "DINOv2's depth head"
ENCODERS = _dinov2_heads.ENCODERS
PRIORITY = 70
LINEAR = KeyMap(rules=(("decode_head.conv_depth.", "project."),))
DPT = KeyMap(
    rules=(
        ("decode_head.reassemble_blocks.readout_projects.{i}.0.", "readouts.{i}."),
        ("decode_head.reassemble_blocks.projects.{i}.conv.", "projects.{i}."),
        ("decode_head.reassemble_blocks.resize_layers.{i}.", "resizes.{i}."),
        ("decode_head.convs.{i}.conv.", "reduce.{i}."),
        ("decode_head.fusion_blocks.{i}.res_conv_unit{n}.conv{m}.conv.", "fuse.{i}.unit{n}.conv{m}."),
        ("decode_head.fusion_blocks.{i}.project.conv.", "fuse.{i}.out."),
        ("decode_head.project.conv.", "project."),
        ("decode_head.conv_depth.head.", "head."),
    ),
    ignored=("decode_head.fusion_blocks.0.res_conv_unit1.",),
)
PER_BLOCK = (2, 8)
RANGES = {"nyu": (0.001, 10.0), "kitti": (0.001, 80.0)}
_BOUND = re.compile(r"\b(min|max)_depth\s*=\s*([0-9.eE+-]+)")

encoder_file = _dinov2_heads.encoder_file


def matches(checkpoint: Mapping[str, Any]) -> bool:
    keys = find_state_dict(checkpoint).keys()
    return "decode_head.conv_depth.weight" in keys or "decode_head.conv_depth.head.0.weight" in keys


def _read(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], KeyMap, _common.Shapes]:
    state = find_state_dict(checkpoint)
    keymap = LINEAR if "decode_head.conv_depth.weight" in state else DPT
    tensors = keymap.apply(state)
    return tensors, keymap, _common.Shapes(tensors, keymap, WHAT)


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors, keymap, shapes = _read(checkpoint)
    if keymap is LINEAR:
        bins, inputs = shapes.of("project.weight", 4)[:2]
        width, notes = _dinov2_heads.width_of(inputs, PER_BLOCK)
        architecture = f"linear depth head, {bins} bins"
    else:
        width, notes, architecture = shapes.of("readouts.0.weight", 2)[0], (), "DPT depth head"
    if (depth_range := stated_range(checkpoint)) is not None:
        notes = (*notes, f"depth from {depth_range[0]:g} to {depth_range[1]:g} m")
    if "optimizer" in checkpoint:
        notes = (*notes, "holds optimizer state, which running it does not need")
    return _common.Description(
        layout=NAME,
        kind="head",
        architecture=architecture,
        teachers=(),
        patch=14,
        width=width,
        parameters=count_parameters(tensors),
        notes=notes,
    )


def stated_range(checkpoint: Mapping[str, Any]) -> tuple[float, float] | None:
    """(min, max) in metres from the configuration text in `meta`, which is searched and never run; None if silent."""
    text = _dinov2_heads.meta_of(checkpoint).get("config")
    bounds = {name: float(value) for name, value in _BOUND.findall(text)} if isinstance(text, str) else {}
    return (bounds.get("min", 0.001), bounds["max"]) if "max" in bounds else None


def _published_range(checkpoint: Mapping[str, Any], file_name: str) -> tuple[float, float]:
    """From the published name, else from the configuration text inside the file."""
    name = _dinov2_heads.published_name(file_name)
    depth_range = RANGES.get(name.data or "") if name else stated_range(checkpoint)
    if depth_range is None:
        raise CheckpointError(
            "its depth range is neither in its name (..._nyu_..., ..._kitti_...) nor in its configuration; give it: "
            "--depth-range 0.001,10 is NYU's and 0.001,80 KITTI's (metres)"
        )
    return depth_range


def build(
    checkpoint: Mapping[str, Any],
    encoder: VisionTransformer,
    file_name: str = "",
    depth_range: tuple[float, float] | None = None,
) -> HeadDepth:
    """The head on `encoder`. `depth_range`: (minimum, maximum) in metres instead of the published one.

    CheckpointError if the weights do not fit, the encoder is of another width, or no range is known.
    """
    _dinov2_heads.check_encoder(encoder, file_name)
    tensors, keymap, shapes = _read(checkpoint)
    minimum, maximum = depth_range or _published_range(checkpoint, file_name)
    if not 0 < minimum < maximum < float("inf"):
        raise CheckpointError(f"a depth range of {minimum:g} to {maximum:g} m is impossible; 0 < minimum < maximum")
    if keymap is LINEAR:
        bins, inputs = shapes.of("project.weight", 4)[:2]
        count = _dinov2_heads.blocks_read(inputs, PER_BLOCK, encoder)
        blocks = _dinov2_heads.four_blocks(encoder) if count == 4 else _dinov2_heads.last_blocks(encoder, 1)
        with torch.device("meta"):
            head = LinearDepthHead(encoder.width, count, bins, minimum, maximum)
    else:
        config = _dpt_config(shapes)
        _dinov2_heads.blocks_read(config.width, (1, 1), encoder)
        blocks = _dinov2_heads.four_blocks(encoder)
        with torch.device("meta"):
            head = Dinov2DptHead(config, minimum)
    load_strict(head, tensors, WHAT, keymap)
    if isinstance(head, Dinov2DptHead):
        head.to(memory_format=torch.channels_last)
    return HeadDepth(encoder, head, blocks, minimum, maximum)


def _dpt_config(shapes: _common.Shapes) -> Dinov2DptConfig:
    return Dinov2DptConfig(
        width=shapes.of("readouts.0.weight", 2)[0],
        levels=tuple(shapes.of(f"projects.{level}.weight", 4)[0] for level in range(4)),
        features=shapes.of("reduce.0.weight", 4)[0],
        head_hidden=shapes.of("head.0.weight", 4)[0],
        head_features=shapes.of("head.2.weight", 4)[0],
    )


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors in official names, and the depth range if the file states one."""
    depth_range = stated_range(checkpoint)
    settings = {} if depth_range is None else {"min_depth": depth_range[0], "max_depth": depth_range[1]}
    return find_state_dict(checkpoint), settings


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    stated = ", ".join(f"{name}={float(settings[name])!r}" for name in ("min_depth", "max_depth") if name in settings)
    return _dinov2_heads.container(tensors, {"config": stated} if stated else {})
