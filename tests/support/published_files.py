"""Weight files in the official layouts, with the deterministic weights of the parity fixtures."""

from __future__ import annotations

import collections
import hashlib
import json
import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dune_cli.models.mast3r import TwoViewOutput
from parity import recipe
from parity.recipe import make_image
from support import PARITY
from support.shared import shared_file

__all__ = [
    "TEACHERS",
    "TOKENS",
    "Fixture",
    "check_two_view",
    "deviation",
    "dinov2_manifest",
    "dune_manifest",
    "dune_tree",
    "make_image",
    "make_state_dict",
    "mast3r_manifest",
    "mast3r_tree",
    "relative",
    "small_two_files",
    "two_files",
]
LARGE = 4_000_000  # numbers: such state dicts are made once a test run, in the folder that its processes share
TOKENS = 2e-5  # absolute; ten times below the promise of 2e-4
POINTS, DESCRIPTORS, CONFIDENCE = 1e-3, 1e-5, 1e-4
TEACHERS = ("dino2reg_vitlarge_14", "mast3r_vitlarge_16", "multihmr_vitlarge_14_672")


def make_state_dict(manifest: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """recipe.make_state_dict; large ones are mapped from a file (a copy of one's own, where it is written to)."""
    if sum(math.prod(shape) for shape in manifest.values()) < LARGE:
        return recipe.make_state_dict(manifest, seed)
    digest = hashlib.sha256(json.dumps([manifest, seed]).encode()).hexdigest()[:16]
    path = shared_file(f"{digest}.pth", lambda file: torch.save(recipe.make_state_dict(manifest, seed), file))
    return torch.load(path, mmap=True)


class Fixture:
    """A parity fixture: its configuration, state dict, images and expected arrays."""

    def __init__(self, name: str) -> None:
        self.config: dict[str, Any] = json.loads((PARITY / f"{name}.json").read_text())
        self.manifest: dict[str, list[int]] = json.loads((PARITY / f"{name}.manifest.json").read_text())
        self.expected = np.load(PARITY / f"{name}.npz")

    def state(self) -> dict[str, torch.Tensor]:
        return make_state_dict(self.manifest, self.config["seed"])

    def image(self, seed: int | None = None) -> torch.Tensor:
        height, width = self.config.get("hw") or self.config["input_hw"]
        return make_image([1, 3, height, width], self.config["image_seed"] if seed is None else seed)


def deviation(found: torch.Tensor, expected: np.ndarray) -> float:
    """The largest absolute difference; the shapes must be equal."""
    assert tuple(found.shape) == expected.shape
    return float(np.abs(found.numpy() - expected).max())


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """The largest relative difference, for points that of the vectors."""
    assert tuple(found.shape) == expected.shape
    a, b = found.numpy(), expected
    if b.ndim == 3:
        return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())
    return float(np.abs(a / b - 1).max())


def check_two_view(out: TwoViewOutput, fixture: Fixture) -> None:
    """Both views of a fixture, at the promised tolerances."""
    for view in (1, 2):
        found = {
            name: getattr(out, f"{name}{view}")[0, ::2, ::2]
            for name in ("points", "confidence", "descriptors", "descriptor_confidence")
        }
        assert relative(found["points"], fixture.expected[f"pts3d_{view}"]) < POINTS
        assert relative(found["confidence"], fixture.expected[f"conf_{view}"]) < CONFIDENCE
        assert deviation(found["descriptors"], fixture.expected[f"desc_{view}"]) < DESCRIPTORS
        assert relative(found["descriptor_confidence"], fixture.expected[f"desc_conf_{view}"]) < CONFIDENCE


def dune_tree(state: dict[str, torch.Tensor], prefix: str = "module.", arch: str = "vit_small") -> dict[str, Any]:
    """What DUNE's training saves: a wrapped state dict, arguments with NumPy schedules, an optimizer, a counter."""
    arguments = Namespace(
        image_size=336,
        enc_args={"arch": arch},
        proj_args=collections.defaultdict(dict),
        teachers=list(TEACHERS),
        lr_schedule=np.linspace(0, 3e-4, 50),
        wd=np.float64(3e-2),
        output_dir=Path("/somewhere/else"),
    )
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float32(1e-3)}]}
    return {
        "model": {prefix + key: value for key, value in state.items()},
        "args": arguments,
        "optimizer": optimizer,
        "iter": 1000,
    }


def mast3r_tree(constructor: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What MASt3R's training saves."""
    return {"args": Namespace(model=constructor, lr=1e-4), "model": state, "epoch": 3}


def two_files(fixture: Fixture, folder: Path) -> tuple[Path, Path]:
    """The DUNE + MASt3R fixture as its two official files: (decoder, encoder)."""
    return _two_files(fixture, fixture.state(), folder)


def small_two_files(folder: Path) -> tuple[Path, Path]:
    """The same with an encoder of width 64 and a decoder of width 128."""
    fixture = Fixture("dunemast3r_vitsmall")
    stated = re.compile(r"(\w+_(?:num_heads|embed_dim)=)(\d+)")
    constructor = fixture.config["mast3r_model_str"]
    fixture.config["mast3r_model_str"] = stated.sub(lambda found: f"{found[1]}{int(found[2]) // 6}", constructor)
    narrow = {key: [_narrowed(side) for side in shape] for key, shape in fixture.manifest.items()}
    return _two_files(fixture, make_state_dict(narrow, fixture.config["seed"]), folder)


def _narrowed(side: int) -> int:
    return side // 6 if side % 384 == 0 else side


def _two_files(fixture: Fixture, state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, Path]:
    inside = "dune_backbone."
    encoder = {key.replace(inside, "encoder."): value for key, value in state.items() if key.startswith(inside)}
    decoder = {key: value for key, value in state.items() if not key.startswith(inside)}
    decoder["imagenet_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    decoder["imagenet_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    names = {key: fixture.config[key] for key in ("dune_backbone_name", "mast3r_model_str")}
    paths = folder / "dunemast3r_cvpr25_vitsmall.pth", folder / "dune_vitsmall14_448.pth"
    torch.save({**names, "model": decoder}, paths[0])
    torch.save(dune_tree(encoder), paths[1])
    return paths


def vit_manifest(width: int, depth: int, side: int, registers: int, patch: int = 14) -> dict[str, list[int]]:
    """Keys and shapes of a DINOv2-layout ViT."""
    keys: dict[str, list[int]] = {
        "cls_token": [1, 1, width],
        "pos_embed": [1, 1 + side * side, width],
        "mask_token": [1, width],
        "patch_embed.proj.weight": [width, 3, patch, patch],
        "patch_embed.proj.bias": [width],
    }
    if registers:
        keys["register_tokens"] = [1, registers, width]
    for block in range(depth):
        keys |= {f"blocks.{block}.{key}": shape for key, shape in _block(width, layer_scale=True).items()}
    return keys | {"norm.weight": [width], "norm.bias": [width]}


def dinov2_manifest(width: int, depth: int, side: int, registers: int = 0) -> dict[str, list[int]]:
    """Keys and shapes of a DINOv2 hub file."""
    return vit_manifest(width, depth, side, registers)


def dune_manifest(width: int, depth: int, side: int, teachers: dict[str, int]) -> dict[str, list[int]]:
    """Keys and shapes of a DUNE file; `teachers`: name -> width of its tokens."""
    keys = {}
    for key, shape in vit_manifest(width, depth, side, 4).items():
        keys["encoder." + key.replace("blocks.", "blocks.0.")] = shape
    for name, teacher_width in teachers.items():
        at = f"projectors.{name}."
        keys |= {f"{at}blocks.0.{key}": shape for key, shape in _block(width, layer_scale=True).items()}
        keys |= {f"{at}linear.weight": [teacher_width, width], f"{at}linear.bias": [teacher_width]}
        keys |= {f"teacher_norms.{name}.normalizers.patch.{key}": [teacher_width] for key in ("mean", "std")}
    return keys


def _block(width: int, layer_scale: bool) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = {}
    for name, out, inside in (
        ("attn.qkv", 3 * width, width),
        ("attn.proj", width, width),
        ("mlp.fc1", 4 * width, width),
        ("mlp.fc2", width, 4 * width),
    ):
        keys |= {f"{name}.weight": [out, inside], f"{name}.bias": [out]}
    for norm in ("norm1", "norm2"):
        keys |= {f"{norm}.weight": [width], f"{norm}.bias": [width]}
    return keys | ({"ls1.gamma": [width], "ls2.gamma": [width]} if layer_scale else {})


def mast3r_manifest() -> dict[str, list[int]]:
    """Keys and shapes of a small MASt3R file (that of the fixture)."""
    return json.loads((PARITY / "mast3r_mini.manifest.json").read_text())
