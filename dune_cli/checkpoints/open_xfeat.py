"""XFeat and LighterGlue (Potje et al. 2024; Apache-2.0): the published files, or the copy that comes with dune."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dune_cli.checkpoints import registry, store
from dune_cli.checkpoints.foreign import Foreign, glue_names, open_foreign
from dune_cli.checkpoints.opened import open_weights
from dune_cli.errors import WeightsMissing
from dune_cli.provenance import Source

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
        store.locate(name)
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
