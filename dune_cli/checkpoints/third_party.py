"""Other people's networks, as their packages carry them: a state dict and where it is from. No layout of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dune_cli.checkpoints import registry, weight_files, weights_folder
from dune_cli.checkpoints.resolve import open_weights
from dune_cli.errors import CheckpointError, WeightsMissing
from dune_cli.provenance import Source


@dataclass(frozen=True)
class Foreign:
    """A file's tensors by their published names."""

    path: Path
    tree: Mapping[str, torch.Tensor]
    source: Source


def open_foreign(name_or_path: str, called: str | None = None) -> Foreign:
    """The file behind a registry name or a path; its source goes by `called`, else by what was asked for.

    WeightsMissing where it is to be pulled first, CheckpointError for a file that cannot be read.
    """
    located = weights_folder.locate(name_or_path)
    file = weight_files.read_located(located)
    licence = located.entry.licence if located.entry else "unknown"
    return Foreign(located.path, file.tree, Source(called or name_or_path, file.sha256, licence))


def glue_names(tree: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LightGlue file, whose layers some copies call `self_attn.0`, in the names `transformers.0.self_attn`."""
    attention = re.compile(r"^(self_attn|cross_attn)\.(\d+)\.")
    return {attention.sub(r"transformers.\2.\1.", key.removeprefix("matcher.")): v for key, v in tree.items()}


# XFeat and LighterGlue (Potje et al. 2024; Apache-2.0): the published files, or the copy that comes with dune.


XFEAT, LIGHTER_GLUE = "xfeat", "xfeat-lighterglue"
COPY = "xfeat-lighterglue-bundled"  # float16, without the parts that matching does not use


def open_xfeat() -> Foreign:
    """XFeat's backbone and heads by their published names: the published float32 file where it is on this machine,
    else the copy. The source goes by `xfeat` and has the hash of the file that was read.

    CheckpointError for a file that cannot be read, WeightsMissing where not even the copy is there.
    """
    if _is_here(XFEAT):
        return open_foreign(XFEAT)
    return _copy(XFEAT, ("xfeat.", "detector."))


def open_lighter_glue() -> Foreign:
    """LighterGlue in the names of `models.light_glue`, as `open_xfeat`."""
    if _is_here(LIGHTER_GLUE):
        file = open_foreign(LIGHTER_GLUE)
        return Foreign(file.path, glue_names(file.tree), file.source)
    return _copy(LIGHTER_GLUE, ("glue.",))


def is_copy(file: Foreign) -> bool:
    """Whether the float16 copy was opened."""
    entry = registry.find(COPY)
    assert entry is not None
    return file.path.name == entry.file


def _is_here(name: str) -> bool:
    try:
        weights_folder.locate(name)
    except WeightsMissing:
        return False
    return True


def _copy(name: str, prefixes: tuple[str, ...]) -> Foreign:
    opened = open_weights(COPY)
    tensors: Mapping[str, torch.Tensor] = opened.tree["matcher"]
    tree = {
        key.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for prefix in prefixes
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    return Foreign(opened.path, tree, Source(name, opened.source.sha256, opened.source.licence))


# The open weights that a stem of `dune-mini` can start from, out of the registry's files.


Tensors = Mapping[str, torch.Tensor]
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


def fill_stem(parts: Mapping[str, nn.Module]) -> dict[str, Source]:
    """Puts the open weights into the parts `xfeat` and `lite` of a stem; returns them by part.

    WeightsMissing where a file is to be pulled first, CheckpointError where one does not fit.
    """
    return {name: _fill(name, part) for name, part in parts.items() if name in _OPEN}


def lite2_state(tree: Tensors) -> dict[str, torch.Tensor]:
    """A published EfficientNet-Lite2 file in timm's names; layers that features do not need are left out."""
    blocks = [(stage, block) for stage, count in enumerate(LITE2_BLOCKS) for block in range(count)]
    return {renamed: value for key, value in tree.items() if (renamed := _timm_name(key, tree, blocks))}


def load_wanted(module: nn.Module, state: Tensors, what: str) -> None:
    """Those tensors of `state` that `module` has; CheckpointError if one is missing or of another shape."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    misshaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misshaped:
        raise CheckpointError(f"{what}: missing {missing[:5]}, of another shape {misshaped[:5]}")
    module.load_state_dict({key: state[key] for key in wanted})


_OPEN: dict[str, tuple[Callable[[], Foreign], Callable[[Tensors], Tensors], str]] = {
    # part -> its file, the file in the part's names, the prefix of the network inside the part
    "xfeat": (open_xfeat, lambda tree: tree, ""),
    "lite": (lambda: open_foreign("efficientnet-lite2"), lite2_state, "network."),
}


def _fill(name: str, part: nn.Module) -> Source:
    open_file, rename, prefix = _OPEN[name]
    file = open_file()
    state = {prefix + key: value for key, value in rename(file.tree).items()}
    load_wanted(part, state, f"{file.path} does not fit the stem's part {name}")
    return file.source


def _timm_name(key: str, state: Tensors, blocks: Iterable[tuple[int, int]]) -> str | None:
    """A published key in timm's words; None for a layer that the features do not need."""
    blocks = tuple(blocks)
    found = re.match(r"_blocks\.(\d+)\.(\w+?)\.(\w+)$", key)
    if not found:
        module, _, leaf = key.rpartition(".")
        return f"{_TOP[module]}.{leaf}" if module in _TOP else None
    index = int(found[1])
    names = _EXPANDED if f"_blocks.{index}._expand_conv.weight" in state else _FIRST
    if index >= len(blocks) or found[2] not in names:
        return None
    stage, block = blocks[index]
    return f"blocks.{stage}.{block}.{names[found[2]]}.{found[3]}"
