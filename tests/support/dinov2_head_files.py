"""DINOv2's published heads as files in their official layouts, with deterministic weights."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.published_files import Fixture, dinov2_manifest, make_state_dict, mast3r_tree

FIXTURE = "dinov2_heads_vits14"
VOC_NAMES = ("background", "aeroplane", "bicycle", *(f"thing {index}" for index in range(18)))
BLOCKS = {"linear": 1, "linear4": 4, "ms": 4}


def fixture_states(fixture: Fixture) -> dict[str, dict[str, torch.Tensor]]:
    """File stem -> state dict, of every file in the fixture."""
    manifest = dict(fixture.manifest)
    constants = fixture.config["constant_keys"]
    state = make_state_dict({key: shape for key, shape in manifest.items() if key not in constants}, 71)
    state |= {key: torch.tensor(value) for key, value in constants.items()}
    found: dict[str, dict[str, torch.Tensor]] = collections.defaultdict(dict)
    for key, tensor in state.items():
        stem, _, name = key.partition(".")
        found[stem][name] = tensor
    return dict(found)


def head_tree(stem: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the published file holds: a bare state dict, or one in a container with NumPy numbers and an optimizer."""
    if "decode_head" not in next(iter(state)):
        return state
    meta: dict[str, Any] = {
        "epoch": 1,
        "iter": 38400,
        "mmseg_version": "0.27.0",
        "best": np.float64(0.3),
        "n": np.int64(3),
    }
    if "nyu" in stem or "kitti" in stem:
        meta["config"] = f"model = dict(decode_head=dict(min_depth=0.001, max_depth={10 if 'nyu' in stem else 80}))\n"
    elif "voc" in stem:
        meta |= {"CLASSES": VOC_NAMES, "PALETTE": [[index, 2 * index, 3 * index] for index in range(21)]}
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(5), "step": np.int64(7)}},
        "param_groups": [{"lr": np.float32(1e-3)}],
    }
    return {"meta": meta, "state_dict": state, "optimizer": optimizer}


def write_fixture(folder: Path) -> Fixture:
    """All files of the fixture, under their published names."""
    fixture = Fixture(FIXTURE)
    for stem, state in fixture_states(fixture).items():
        torch.save(head_tree(stem, state), folder / f"{stem}.pth")
    return fixture


def head_manifest(kind: str, width: int, data: str | None = None) -> dict[str, list[int]]:
    """Keys and shapes of a published head: kind linear, linear4, dpt or ms; data nyu, kitti, ade20k, voc2012, None."""
    at, blocks = "decode_head.", BLOCKS.get(kind, 4)
    if data is None:
        return {"weight": [1000, width * (blocks + 1)], "bias": [1000]}
    if data in ("ade20k", "voc2012"):
        classes = 150 if data == "ade20k" else 21
        keys = {f"{at}conv_seg.weight": [classes, width * blocks, 1, 1], f"{at}conv_seg.bias": [classes]}
        statistics = ("weight", "bias", "running_mean", "running_var")
        return keys | {f"{at}bn.{name}": [width * blocks] for name in statistics} | {f"{at}bn.num_batches_tracked": []}
    if kind != "dpt":
        return {f"{at}conv_depth.weight": [256, 2 * width * blocks, 1, 1], f"{at}conv_depth.bias": [256]}
    return _dpt_manifest(at, width)


def _dpt_manifest(at: str, width: int) -> dict[str, list[int]]:
    levels = [width // 8, width // 4, width // 2, width]
    keys: dict[str, list[int]] = {}

    def layer(name: str, shape: list[int], outputs: int | None) -> None:
        keys[f"{at}{name}.weight"] = shape
        if outputs is not None:
            keys[f"{at}{name}.bias"] = [outputs]

    for index, channels in enumerate(levels):
        reassemble = "reassemble_blocks."
        layer(f"{reassemble}readout_projects.{index}.0", [width, 2 * width], width)
        layer(f"{reassemble}projects.{index}.conv", [channels, width, 1, 1], channels)
        side = {0: 4, 1: 2, 3: 3}.get(index)
        if side is not None:
            layer(f"{reassemble}resize_layers.{index}", [channels, channels, side, side], channels)
        layer(f"convs.{index}.conv", [256, channels, 3, 3], None)
        for unit in (1, 2) if index else (2,):
            for conv in (1, 2):
                layer(f"fusion_blocks.{index}.res_conv_unit{unit}.conv{conv}.conv", [256, 256, 3, 3], None)
        layer(f"fusion_blocks.{index}.project.conv", [256, 256, 1, 1], 256)
    layer("project.conv", [256, 256, 3, 3], 256)
    for name, shape in (("0", [128, 256, 3, 3]), ("2", [32, 128, 3, 3]), ("4", [1, 32, 1, 1])):
        layer(f"conv_depth.head.{name}", shape, shape[0])
    return keys


def write_head(folder: Path, stem: str, width: int, kind: str, data: str | None = None, seed: int = 5) -> Path:
    """A head of any width under its published name."""
    manifest = head_manifest(kind, width, data)
    state = make_state_dict({key: shape for key, shape in manifest.items() if shape}, seed)
    state |= {key: torch.tensor(40000) for key, shape in manifest.items() if not shape}
    path = folder / f"{stem}.pth"
    torch.save(head_tree(stem, state), path)
    return path


def write_encoder(folder: Path, stem: str, width: int, depth: int, registers: int = 0, side: int = 5) -> Path:
    """A DINOv2 encoder of any size under its published name."""
    path = folder / f"{stem}.pth"
    torch.save(make_state_dict(dinov2_manifest(width, depth, side, registers), 4), path)
    return path


def write_small_set(folder: Path) -> Path:
    """An encoder (ViT-S, 12 blocks) and a head of each kind under their published names, and a two-view file."""
    write_encoder(folder, "dinov2_vits14_pretrain", 384, 12, side=37)
    heads = (("nyu", "dpt"), ("kitti", "linear"), ("voc2012", "linear"), ("ade20k", "linear"), (None, "linear"))
    for data, kind in heads:
        write_head(folder, "_".join(filter(None, ("dinov2_vits14", data, kind, "head"))), 384, kind, data)
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), folder / "two_view.pth")
    return folder
