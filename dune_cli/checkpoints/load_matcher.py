"""The head of the matcher `dune`: read from its file, or begun from open weights (XFeat, LighterGlue; Apache-2.0)."""

from __future__ import annotations

from pathlib import Path

import torch

from dune_cli.checkpoints.open_stems import load_wanted
from dune_cli.checkpoints.open_xfeat import open_lighter_glue, open_xfeat
from dune_cli.checkpoints.opened import expect, finish, naming, open_weights, target
from dune_cli.models.match_head import MatchHead, MatchHeadConfig
from dune_cli.provenance import Source


def load_match_head(name_or_path: str | Path, device: str = "auto") -> MatchHead:
    """A trained head. Raises WeightsMissing, CheckpointError, UserError."""
    where, kind = target(device, "float32")
    opened = open_weights(name_or_path)
    expect(opened, "matcher")
    with naming(opened.path):
        head = opened.adapter.build(opened.tree)
    return finish(head, opened.source, where, kind)


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
