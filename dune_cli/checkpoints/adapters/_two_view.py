"""The decoder and heads that MASt3R and DUNE + MASt3R share: their key map and their sizes (docs/models/mast3r.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dune_cli.checkpoints.adapters._common import Shapes, heads_of
from dune_cli.errors import CheckpointError
from dune_cli.models.dpt import DptConfig
from dune_cli.models.mast3r import ConfidenceMode, DecoderConfig, HeadConfig

Rules = tuple[tuple[str, str], ...]


def rules(prefix: str = "") -> Rules:
    """Published names under `prefix` -> ours."""
    found = [
        ("decoder_embed.", "decoder.embed."),
        ("dec_blocks.", "decoder.blocks1."),
        ("dec_blocks2.", "decoder.blocks2."),
        ("dec_norm.", "decoder.norm."),
        ("downstream_head{n}.head_local_features.", "head{n}.local."),
        ("downstream_head{n}.dpt.head.", "head{n}.points.head."),
        ("downstream_head{n}.dpt.act_postprocess.", "head{n}.points.levels."),
    ]
    for level in range(4):
        scratch, points = "downstream_head{n}.dpt.scratch.", "head{n}.points."
        found += [
            (f"{scratch}layer{level + 1}_rn.", f"{points}reduce.{level}."),
            (f"{scratch}refinenet{level + 1}.resConfUnit1.", f"{points}fuse.{level}.unit1."),
            (f"{scratch}refinenet{level + 1}.resConfUnit2.", f"{points}fuse.{level}.unit2."),
            (f"{scratch}refinenet{level + 1}.out_conv.", f"{points}fuse.{level}.out."),
        ]
    return tuple((prefix + published, ours) for published, ours in found)


def aliases(prefix: str = "") -> Rules:
    """The four reducing convolutions are in the files twice."""
    return ((prefix + "downstream_head{n}.dpt.scratch.layer_rn.{i}.", "head{n}.points.reduce.{i}."),)


def unused(prefix: str = "") -> tuple[str, ...]:
    """Published keys that no computation uses."""
    return (
        f"{prefix}mask_token",
        *(f"{prefix}downstream_head{n}.dpt.scratch.refinenet4.resConfUnit1." for n in (1, 2)),
    )


def complete(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`dec_blocks2` of a checkpoint without them are copies of `dec_blocks`."""
    if any(key.startswith("decoder.blocks2.") for key in tensors):
        return tensors
    first = {key: value for key, value in tensors.items() if key.startswith("decoder.blocks1.")}
    return tensors | {key.replace("blocks1", "blocks2", 1): value for key, value in first.items()}


def decoder_config(shapes: Shapes, constructor: Constructor, what: str) -> DecoderConfig:
    width, encoder_width = shapes.of("decoder.embed.weight", 2)
    return DecoderConfig(
        encoder_width=encoder_width,
        width=width,
        depth=shapes.depth("decoder.blocks1."),
        heads=heads_of(width, constructor.decoder_heads, what),
        hidden=shapes.of("decoder.blocks1.0.mlp.fc1.weight", 2)[0],
        rope_base=constructor.rope_base,
    )


def head_config(shapes: Shapes, constructor: Constructor, patch: int, what: str) -> HeadConfig:
    at = "head1.points."
    projections = [shapes.of(f"{at}levels.{level}.0.weight", 4) for level in range(4)]
    local_hidden, local_inputs = shapes.of("head1.local.fc1.weight", 2)
    channels = constructor.descriptor_channels + constructor.own_descriptor_confidence
    stored = shapes.of("head1.local.fc2.weight", 2)[0]
    if stored != channels * patch * patch:
        raise CheckpointError(
            f"{what}: the descriptor head gives {stored} values a token; the constructor string and patch {patch} "
            f"ask for {channels} x {patch} x {patch} = {channels * patch * patch}"
        )
    outputs = shapes.of(f"{at}head.4.weight", 4)[0]
    if outputs != 4:
        raise CheckpointError(f"{what}: the point head gives {outputs} channels; supported: 4 (x, y, z, confidence)")
    return HeadConfig(
        points=DptConfig(
            inputs=tuple(shape[1] for shape in projections),
            levels=tuple(shape[0] for shape in projections),
            features=shapes.of(f"{at}reduce.0.weight", 4)[0],
            head_hidden=shapes.of(f"{at}head.0.weight", 4)[0],
            head_features=shapes.of(f"{at}head.2.weight", 4)[0],
            outputs=outputs,
            patch=patch,
        ),
        local_inputs=local_inputs,
        local_hidden=local_hidden,
        descriptor_channels=constructor.descriptor_channels,
        own_descriptor_confidence=constructor.own_descriptor_confidence,
        confidence=constructor.confidence,
        descriptor_confidence=constructor.descriptor_confidence,
    )


# The constructor string inside MASt3R checkpoints, read as data and never run (docs/models/mast3r.md, "Checkpoint
# containers").


CLASS = "AsymmetricMASt3R"
LONGEST = 20_000


@dataclass(frozen=True)
class Constructor:
    """Settings of the string that the shapes do not give; None where it has none."""

    encoder_heads: int | None
    decoder_heads: int | None
    patch: int | None
    rope_base: float
    descriptor_channels: int
    own_descriptor_confidence: bool
    confidence: ConfidenceMode
    descriptor_confidence: ConfidenceMode


def read_constructor(text: Any) -> Constructor:
    """The settings in `AsymmetricMASt3R(...)`. CheckpointError for anything that this package does not implement."""
    given = _keywords(text)
    head = given.get("head_type", "catmlp+dpt")
    if head != "catmlp+dpt":
        raise _unsupported("head_type", head, "'catmlp+dpt'")
    output = re.fullmatch(r"pts3d\+desc(\d+)", str(given.get("output_mode")))
    if not output:
        raise _unsupported("output_mode", given.get("output_mode"), "'pts3d+desc<channels>'")
    rope = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", str(given.get("pos_embed", "RoPE100")))
    if not rope:
        raise _unsupported("pos_embed", given.get("pos_embed"), "'RoPE<base>'")
    infinity = float("inf")
    depth_mode = given.get("depth_mode", ("exp", -infinity, infinity))
    if not isinstance(depth_mode, (tuple, list)) or list(depth_mode) != ["exp", -infinity, infinity]:
        raise _unsupported("depth_mode", depth_mode, "('exp', -inf, inf)")
    confidence = _confidence("conf_mode", given.get("conf_mode", ("exp", 1, infinity)))
    described = given.get("desc_conf_mode")
    return Constructor(
        encoder_heads=_integer(given, "enc_num_heads"),
        decoder_heads=_integer(given, "dec_num_heads"),
        patch=_integer(given, "patch_size"),
        rope_base=float(rope[1]),
        descriptor_channels=int(output[1]),
        own_descriptor_confidence=bool(given.get("two_confs", False)),
        confidence=confidence,
        descriptor_confidence=confidence if described is None else _confidence("desc_conf_mode", described),
    )


def _unsupported(name: str, value: Any, allowed: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's constructor string has {name}={value!r}; supported: {allowed}")


def _keywords(text: Any) -> Mapping[str, Any]:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise CheckpointError(f"the checkpoint has no constructor string '{CLASS}(...)' that says how to build it")
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keywords only")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("'**' is not data")
        values = {str(keyword.arg): ast.literal_eval(_Infinity().visit(keyword.value)) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 120 else text[:117] + "..."
        raise CheckpointError(f"cannot read the checkpoint's constructor string {shown!r}: {error}") from error
    if call.func.id != CLASS:
        raise CheckpointError(f"the checkpoint was made by {call.func.id!r}; supported: {CLASS!r}")
    return values


class _Infinity(ast.NodeTransformer):
    """`inf` (also `float('inf')`) becomes the number, which literal_eval does not know."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(float("inf")), node) if node.id == "inf" else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if isinstance(node.func, ast.Name) and node.func.id == "float" and words in (["inf"], ["-inf"]):
            return ast.copy_location(ast.Constant(float(words[0])), node)
        return node


def _integer(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise _unsupported(name, value, "a whole number")
    return value or None


def _confidence(name: str, mode: Any) -> ConfidenceMode:
    if not isinstance(mode, (tuple, list)) or len(mode) != 3 or mode[0] != "exp":
        raise _unsupported(name, mode, "('exp', minimum, maximum)")
    if not all(isinstance(bound, (int, float)) for bound in mode[1:]):
        raise _unsupported(name, mode, "('exp', minimum, maximum)")
    return ConfidenceMode(float(mode[1]), float(mode[2]))
