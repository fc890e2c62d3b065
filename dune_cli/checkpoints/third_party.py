"""Open weights of other projects (XFeat, LighterGlue, ALIKED, EfficientNet-Lite2, ...), and what starts from them.

Their files are state dicts of the publishers' own networks; no adapter reads them. XFeat and LighterGlue (Potje et al.
2024; Apache-2.0) and ALIKED (Zhao et al. 2023; BSD-3-Clause) also come with dune, as float16 copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.state_dict import load_strict
from dune_cli.checkpoints.weight_files import naming_file, open_weights
from dune_cli.errors import WeightsMissing
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.provenance import Source

XFEAT, LIGHTER_GLUE = "xfeat", "xfeat-lighterglue"
ALIKED = "aliked-n16"
COPY, ALIKED_COPY = "xfeat-lighterglue-bundled", "aliked-lightglue-bundled"
# EfficientNet-Lite2: published part of a name -> timm's
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE2_BLOCKS = (1, 3, 3, 4, 4, 5, 1)  # of the stages


@dataclass(frozen=True)
class ThirdPartyWeights:
    """A file's tensors by their published names."""

    path: Path
    state_dict: Mapping[str, Any]
    source: Source

    def load_into(
        self, module: nn.Module, what: str, given: tuple[str, ...] = (), allow_unexpected: bool = False
    ) -> None:
        """As `state_dict.load_strict`. CheckpointError, naming the file, if it does not fit."""
        with naming_file(self.path):
            load_strict(module, self.state_dict, what, given=given, allow_unexpected=allow_unexpected)


def open_third_party(name_or_path: str, source_name: str) -> ThirdPartyWeights:
    """The file behind a registry name or a path; its source goes by `source_name`.

    WeightsMissing where it is to be pulled first, CheckpointError for a file that cannot be read.
    """
    file = open_weights(name_or_path)
    return ThirdPartyWeights(file.path, file.checkpoint, replace(file.source, name=source_name))


def open_xfeat() -> ThirdPartyWeights:
    """XFeat's backbone and heads: the published float32 file where it is on this machine, else the copy.

    The source goes by `xfeat` and has the hash of the file that was read. CheckpointError for a file that cannot be
    read, WeightsMissing where not even the copy is there.
    """
    return open_third_party(XFEAT, XFEAT) if _is_here(XFEAT) else _open_copy(COPY, XFEAT, ("xfeat.", "detector."))


def open_lighter_glue() -> ThirdPartyWeights:
    """LighterGlue in the names of `models.lightglue`, as `open_xfeat`."""
    if not _is_here(LIGHTER_GLUE):
        return _open_copy(COPY, LIGHTER_GLUE, ("glue.",))
    file = open_third_party(LIGHTER_GLUE, LIGHTER_GLUE)
    return replace(file, state_dict=rename_lightglue(file.state_dict))


def open_aliked() -> ThirdPartyWeights:
    """ALIKED-n16, as `open_xfeat`."""
    return open_third_party(ALIKED, ALIKED) if _is_here(ALIKED) else _open_copy(ALIKED_COPY, ALIKED, ("aliked.",))


def is_copy(file: ThirdPartyWeights) -> bool:
    """Whether a float16 copy was opened."""
    return file.path.name in {entry.file for name in (COPY, ALIKED_COPY) if (entry := registry.find(name))}


def rename_lightglue(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LightGlue file, whose layers some copies call `self_attn.0`, in the names `transformers.0.self_attn`."""
    attention = re.compile(r"^(self_attn|cross_attn)\.(\d+)\.")
    return {attention.sub(r"transformers.\2.\1.", key.removeprefix("matcher.")): v for key, v in state_dict.items()}


def rename_lite2(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published EfficientNet-Lite2 file in timm's names; layers that features do not need are left out."""
    blocks = [(stage, block) for stage, count in enumerate(LITE2_BLOCKS) for block in range(count)]
    names = {key: _timm_name(key, state_dict, blocks) for key in state_dict}
    return {name: state_dict[key] for key, name in names.items() if name}


def fill_stem(parts: Mapping[str, nn.Module]) -> dict[str, Source]:
    """Puts the open weights into the parts `xfeat` and `lite` of a dune-mini's stem; returns their sources by part.

    WeightsMissing where a file is to be pulled first, CheckpointError where one does not fit.
    """
    openers: dict[str, Callable[[], ThirdPartyWeights]] = {"xfeat": open_xfeat, "lite": _open_lite}
    files = {name: openers[name]() for name in parts if name in openers}
    for name, file in files.items():
        file.load_into(parts[name], f"the stem's part {name}", allow_unexpected=True)
    return {name: file.source for name, file in files.items()}


def begin_match_head(config: MatchHeadConfig, seed: int) -> tuple[MatchHead, dict[str, Source]]:
    """XFeat's detector and LighterGlue in a new head, whose other layers are drawn by `seed`; where they came from.

    CheckpointError where a file does not fit.
    """
    head = new_match_head(config, seed)
    detector, glue = open_xfeat(), open_lighter_glue()
    detector.load_into(head.detector, "the matching head's detector", allow_unexpected=True)
    glue.load_into(head.glue, "the matching head's LightGlue", allow_unexpected=True)
    return head, {file.source.name: file.source for file in (detector, glue)}


def new_match_head(config: MatchHeadConfig, seed: int) -> MatchHead:
    """A head with random weights, drawn by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MatchHead(config)


def continue_match_head(config: MatchHeadConfig, seed: int, start: MatchHead) -> MatchHead:
    """A new head that starts from `start`, also where its context has other parts: what is new enters as zero.

    CheckpointError where the sizes differ.
    """
    head = new_match_head(config, seed)
    load_strict(head, head.state_dict() | start.state_dict(), "the head to start from", allow_unexpected=True)
    return head


def _is_here(name: str) -> bool:
    try:
        weights_folder.locate(name)
    except WeightsMissing:
        return False
    return True


def _open_copy(copy: str, name: str, prefixes: tuple[str, ...]) -> ThirdPartyWeights:
    """The parts under `prefixes` of a copy, in float32, as a file called `name`."""
    file = open_third_party(copy, name)
    state_dict = {
        key.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for prefix in prefixes
        for key, value in file.state_dict.items()
        if key.startswith(prefix)
    }
    return replace(file, state_dict=state_dict)


def _open_lite() -> ThirdPartyWeights:
    file = open_third_party("efficientnet-lite2", "efficientnet-lite2")
    return replace(file, state_dict={f"network.{key}": value for key, value in rename_lite2(file.state_dict).items()})


def _timm_name(key: str, state_dict: Mapping[str, Any], blocks: list[tuple[int, int]]) -> str | None:
    """A published key of EfficientNet-Lite2 in timm's words; None for a layer that the features do not need."""
    match = re.match(r"_blocks\.(\d+)\.(\w+?)\.(\w+)$", key)
    if not match:
        module, _, leaf = key.rpartition(".")
        return f"{_TOP[module]}.{leaf}" if module in _TOP else None
    index = int(match[1])
    names = _EXPANDED if f"_blocks.{index}._expand_conv.weight" in state_dict else _FIRST
    if index >= len(blocks) or match[2] not in names:
        return None
    stage, block = blocks[index]
    return f"blocks.{stage}.{block}.{names[match[2]]}.{match[3]}"
