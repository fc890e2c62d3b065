"""What DINOv2's own trainer, and trainers like it, save: the same encoder gives the same features, wherever it lies."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dune_cli.checkpoints import inventory, weights_folder
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.errors import CheckpointError
from support.published_files import dinov2_manifest, make_state_dict

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "registers"])
def encoder(request: pytest.FixtureRequest) -> State:
    return make_state_dict(dinov2_manifest(64, 3, 2, registers=request.param), 3)


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """The student, which differs from the teacher."""
    return {key: value + 1 for key, value in state.items()}


HEADS = {
    "dino_head.mlp.0.weight": torch.ones(8, 64),
    "dino_head.last_layer.weight_g": torch.ones(9, 1),
    "ibot_head.mlp.0.weight": torch.ones(8, 64),
}


def both(state: State) -> State:
    """ssl_meta_arch.py's state dict: student, teacher, their heads and the losses' centres."""
    return {
        **under("student.backbone.", other(state)),
        **under("student.", HEADS),
        **under("teacher.backbone.", state),
        **under("teacher.", HEADS),
        "dino_loss.center": torch.zeros(1, 9),
        "ibot_patch_loss.center": torch.zeros(1, 1, 9),
    }


def chunked(state: State) -> State:
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda g: f"blocks.{int(g[1]) // 2}.{g[1]}.", key): v for key, v in state.items()
    }


def within_parts(state: State, part: str) -> State:
    """A wrapper's name inside the path, as FSDP leaves it around each block."""
    return {re.sub(r"^(blocks\.\d+\.)", rf"\1{part}.", key): value for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "hub": lambda s: s,
    "teacher_checkpoint": lambda s: {"teacher": under("backbone.", s)},
    "teacher with heads": lambda s: {"teacher": {**under("backbone.", s), **HEADS}},
    "model_final.rank_0": lambda s: {"model": both(s), "iteration": 100, "optimizer": {"state": {}}},
    "flat teacher": lambda s: under("teacher.backbone.", s),
    "model, teacher alone": lambda s: {"model": under("teacher.backbone.", s), "iteration": 100},
    "student alone": lambda s: {"student": under("backbone.", s), "epoch": 3},
    "student and teacher": lambda s: {"student": under("module.backbone.", other(s)), "teacher": under("backbone.", s)},
    "ddp teacher": lambda s: {"teacher": under("module.backbone.", s)},
    "module.teacher": lambda s: {"state_dict": under("module.teacher.backbone.", s), "epoch": 3},
    "lightning": lambda s: {"state_dict": under("teacher.", s) | under("student.", other(s)), "epoch": 3},
    "nested": lambda s: {"model": {"teacher": {"backbone": s}, "student": {"backbone": other(s)}}},
    "ema": lambda s: {"model": under("backbone.", other(s)), "model_ema": under("backbone.", s)},
    "backbone": lambda s: {"state_dict": under("backbone.", s) | {"head.weight": torch.ones(3, 64)}},
    "fsdp": lambda s: {"model": under("_fsdp_wrapped_module.", within_parts(s, "_fsdp_wrapped_module"))},
    "fsdp teacher": lambda s: {"teacher": under("backbone.", within_parts(s, "_checkpoint_wrapped_module"))},
    "compiled teacher": lambda s: {"teacher": under("_orig_mod.backbone.", s)},
    "chunked": chunked,
    "chunked teacher": lambda s: {"teacher": under("backbone.", chunked(s))},
    "with arguments": lambda s: {"model": s, "args": argparse.Namespace(lr=1e-3), "epoch": np.int64(4)},
}  # fmt: skip


@torch.no_grad()
def features(path: Path) -> torch.Tensor:
    images = torch.rand(1, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    tokens = load_encoder(path)(images)
    return torch.cat([tokens.cls[:, None], tokens.patches], 1)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_features(form: str, encoder: State, tmp_path: Path) -> None:
    torch.save(encoder, tmp_path / "hub.pth")
    torch.save(FORMS[form](encoder), tmp_path / "form.pth")
    assert torch.equal(features(tmp_path / "form.pth"), features(tmp_path / "hub.pth"))


def test_info_says_where_the_encoder_lies_and_convert_takes_it_alone(encoder: State, tmp_path: Path) -> None:
    torch.save({"model": both(encoder), "iteration": 100}, tmp_path / "model_final.pth")
    located = weights_folder.LocatedFile(tmp_path / "model_final.pth", None)
    facts = inventory.describe_file(located)
    assert (facts["layout"], facts["kind"]) == ("dinov2-training", "encoder")
    assert "a training checkpoint; its encoder is model.teacher.backbone" in facts["notes"]
    inventory.convert(located, tmp_path / "a.safetensors")
    assert torch.equal(features(tmp_path / "a.safetensors"), features(tmp_path / "model_final.pth"))
    assert (tmp_path / "a.safetensors").stat().st_size < 0.6 * (tmp_path / "model_final.pth").stat().st_size


def test_what_is_not_clear_is_told(encoder: State, tmp_path: Path) -> None:
    torch.save({"model": under("backbone.", encoder) | under("network.", other(encoder))}, tmp_path / "two.pth")
    with pytest.raises(
        CheckpointError, match=r"several encoders \(model\.backbone, model\.network\); save one of them"
    ):
        load_encoder(tmp_path / "two.pth")
    torch.save({"teacher": under("backbone.", encoder), "decoder": {"w": torch.ones(2)}}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match="none of the known layouts"):
        load_encoder(tmp_path / "more.pth")
    torch.save({"model": {"_flat_param": torch.ones(9)}}, tmp_path / "flat.pth")
    with pytest.raises(CheckpointError, match="flattened FSDP parameters: save the whole state dict"):
        load_encoder(tmp_path / "flat.pth")
