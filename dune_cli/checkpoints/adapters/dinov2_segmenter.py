"""DINOv2's linear segmentation heads: {'meta', 'state_dict', 'optimizer'}.

docs/models/dinov2-heads.md, "Segmentation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common, _dinov2_heads
from dune_cli.checkpoints.state_dict import KeyMap, count_parameters, find_state_dict, load_strict
from dune_cli.models.dinov2_heads import LinearSegmentationHead, SegmentationProtocol, Segmenter
from dune_cli.models.vit import VisionTransformer

NAME = "dinov2-segmenter"
KIND = "segmenter"
WHAT = "DINOv2's segmentation head"
ENCODERS = _dinov2_heads.ENCODERS
PRIORITY = 80
KEYS = KeyMap(
    rules=(("decode_head.bn.", "bn."), ("decode_head.conv_seg.", "project.")),
    ignored=("decode_head.bn.num_batches_tracked",),
)
PER_BLOCK = (1, 4)
VOC2012_CLASSES = 21
ONE_BLOCK = SegmentationProtocol(crop_px=512, stride_px=341, short_sides_px=(512,), longest_px=None, flip=False)
ONE_BLOCK_VOC2012 = SegmentationProtocol(crop_px=512, stride_px=341, short_sides_px=(512,), longest_px=2048, flip=False)
FOUR_BLOCKS = SegmentationProtocol(
    crop_px=640, stride_px=320, short_sides_px=(640, 844, 1107, 1459, 1920), longest_px=None, flip=True
)

encoder_file = _dinov2_heads.encoder_file


def matches(checkpoint: Mapping[str, Any]) -> bool:
    return {"decode_head.conv_seg.weight", "decode_head.bn.running_mean"} <= find_state_dict(checkpoint).keys()


def describe(checkpoint: Mapping[str, Any]) -> _common.Description:
    tensors = KEYS.apply(find_state_dict(checkpoint))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 4)[:2]
    width, notes = _dinov2_heads.width_of(inputs, PER_BLOCK)
    names = class_names(checkpoint, classes)
    notes = (*notes, f"names of its classes: {'yes' if names else 'no'}")
    if "optimizer" in checkpoint:
        notes = (*notes, "holds optimizer state, which running it does not need")
    return _common.Description(
        layout=NAME,
        kind="head",
        architecture=f"linear segmentation head, {classes} classes",
        teachers=(),
        patch=14,
        width=width,
        parameters=count_parameters(tensors),
        notes=notes,
    )


def build(checkpoint: Mapping[str, Any], encoder: VisionTransformer, file_name: str = "") -> Segmenter:
    """The segmenter on `encoder`. CheckpointError if the weights do not fit, or the encoder is of another width."""
    _dinov2_heads.check_encoder(encoder, file_name)
    tensors = KEYS.apply(find_state_dict(checkpoint))
    classes, inputs = _common.Shapes(tensors, KEYS, WHAT).of("project.weight", 4)[:2]
    blocks = _dinov2_heads.blocks_read(inputs, PER_BLOCK, encoder)
    protocol = FOUR_BLOCKS if blocks == 4 else ONE_BLOCK_VOC2012 if classes == VOC2012_CLASSES else ONE_BLOCK
    with torch.device("meta"):
        head = LinearSegmentationHead(encoder.width, blocks, classes)
    load_strict(head, tensors, WHAT, KEYS)
    return Segmenter(
        encoder,
        head,
        _dinov2_heads.last_blocks(encoder, blocks),
        protocol,
        class_names(checkpoint, classes),
        palette(checkpoint, classes),
    )


def class_names(checkpoint: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The file's own names of its classes; empty unless it has one for each."""
    names = _dinov2_heads.meta_of(checkpoint).get("CLASSES")
    if not _is_list(names, classes) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def palette(checkpoint: Mapping[str, Any], classes: int) -> tuple[tuple[int, int, int], ...]:
    """The file's own colours (RGB, 0-255) of its classes; empty unless it has one for each."""
    colours = _dinov2_heads.meta_of(checkpoint).get("PALETTE")
    if hasattr(colours, "tolist"):
        colours = colours.tolist()
    if not _is_list(colours, classes) or not all(_is_list(colour, 3) for colour in colours):
        return ()
    if not all(isinstance(value, int) and 0 <= value <= 255 for colour in colours for value in colour):
        return ()
    return tuple(tuple(colour) for colour in colours)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def export(checkpoint: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors in official names, and the file's class names and colours."""
    tensors = find_state_dict(checkpoint)
    classes = len(tensors["decode_head.conv_seg.weight"])
    return tensors, {"CLASSES": class_names(checkpoint, classes), "PALETTE": palette(checkpoint, classes)}


def restore(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint again, from what `export` gave."""
    return _dinov2_heads.container(tensors, settings)
