"""What the adapters of DINOv2's published heads share (docs/models/dinov2-heads.md): their container, names and sizes.

A head's state dict does not tell its encoder's width alone: 3072 inputs are one block of ViT-g or four of ViT-S. The
encoder settles it, and the file's name where it is a published one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dune_cli.checkpoints.adapters import _common
from dune_cli.errors import CheckpointError
from dune_cli.models.vit import VisionTransformer

ENCODERS = ("dinov2",)  # layouts of the encoder
LETTERS = {"s": 384, "b": 768, "l": 1024, "g": 1536}
FOUR_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}  # by the encoder's depth
_PUBLISHED = re.compile(
    r"dinov2_vit(?P<letter>[sblg])14(?P<registers>_reg4)?(_(?P<data>nyu|kitti|ade20k|voc2012))?"
    r"_(?P<kind>linear4|linear|dpt|ms)_head"
)


@dataclass(frozen=True)
class PublishedName:
    """What a published head's file name says. `data` is None for the ImageNet heads."""

    width: int
    registers: bool
    data: str | None
    blocks: int
    encoder_file: str


def published_name(file: str) -> PublishedName | None:
    """Reads names such as dinov2_vits14_nyu_dpt_head.pth; None for others."""
    match = _PUBLISHED.match(file)
    if match is None:
        return None
    letter, registers = match["letter"], match["registers"] or ""
    return PublishedName(
        width=LETTERS[letter],
        registers=bool(registers),
        data=match["data"],
        blocks=1 if match["kind"] == "linear" else 4,
        encoder_file=f"dinov2_vit{letter}14{registers}_pretrain.pth",
    )


def encoder_file(checkpoint: Mapping[str, Any], file_name: str) -> str:
    """The published file of the head's encoder. CheckpointError where the head's own file name does not tell it."""
    name = published_name(file_name)
    if name is None:
        raise CheckpointError("its name does not tell which encoder it belongs to; give it with --encoder (encoder=)")
    return name.encoder_file


def check_encoder(encoder: VisionTransformer, file_name: str) -> None:
    """CheckpointError unless the encoder is the kind that the head's file name says, if it says one."""
    name = published_name(file_name)
    if name is None:
        return
    if encoder.width != name.width:
        raise _of_another_width(f"by its name, {name.width}", encoder)
    if bool(encoder.config.registers) != name.registers:
        words = {True: "with registers", False: "without registers"}
        raise CheckpointError(
            f"by its name the head belongs to an encoder {words[name.registers]}; the given one is "
            f"{words[not name.registers]}; give {name.encoder_file}"
        )


def blocks_read(inputs: int, per_block: Sequence[int], encoder: VisionTransformer) -> int:
    """1 or 4: how many blocks give the head its `inputs` channels. `per_block`: channels of one and of four blocks,
    in units of the encoder's width. CheckpointError, naming both widths, if neither fits."""
    for blocks, units in zip((1, 4), per_block):
        if inputs == units * encoder.width:
            return blocks
    fitting = " or ".join(map(str, _widths(inputs, per_block)))
    raise _of_another_width(fitting or f"none known ({inputs} inputs)", encoder)


def four_blocks(encoder: VisionTransformer) -> tuple[int, ...]:
    """The four blocks, counted from 0, that depth heads read. CheckpointError for a depth without published heads."""
    depth = len(encoder.blocks)
    if depth not in FOUR_BLOCKS:
        allowed = ", ".join(map(str, FOUR_BLOCKS))
        raise CheckpointError(f"no head is published for an encoder of {depth} blocks; allowed: {allowed}")
    return FOUR_BLOCKS[depth]


def last_blocks(encoder: VisionTransformer, count: int) -> tuple[int, ...]:
    """The last `count` blocks, counted from 0."""
    depth = len(encoder.blocks)
    return tuple(range(depth - count, depth))


def width_of(inputs: int, per_block: Sequence[int]) -> tuple[int, tuple[str, ...]]:
    """The width for a description, 0 if the shapes leave several, and a note that names them."""
    fitting = _widths(inputs, per_block)
    if len(fitting) == 1:
        return fitting[0], ()
    return 0, (f"for an encoder of width {' or '.join(map(str, fitting)) or 'unknown'}",)


def meta_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `meta` of a depth or segmentation file; empty where there is none."""
    meta = checkpoint.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def container(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The published checkpoint of a depth or segmentation file."""
    return {"meta": dict(meta), "state_dict": dict(tensors)}


def _widths(inputs: int, per_block: Sequence[int]) -> list[int]:
    return sorted({width for width in _common.SIZES for units in per_block if units * width == inputs})


def _of_another_width(head: str, encoder: VisionTransformer) -> CheckpointError:
    return CheckpointError(
        f"the head is for an encoder of width {head}; the given encoder has width {encoder.width} "
        f"({_common.vit_name(encoder.width, encoder.patch)}); give the encoder of the head's size"
    )
