"""DINOv2's heads of every size: what the shapes tell, and encoders of another size or kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dune_cli import load_classifier, load_depth, load_segmenter
from dune_cli.errors import CheckpointError
from support.dinov2_head_files import write_encoder, write_head
from support.published_files import dinov2_manifest, make_state_dict

WIDTHS = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}


@pytest.mark.parametrize("letter", ["s", "b"])
@pytest.mark.parametrize("kind, data", [("linear", "nyu"), ("linear4", "kitti"), ("dpt", "nyu"), ("ms", "ade20k")])
def test_sizes_are_read_off_the_shapes(tmp_path: Path, letter: str, kind: str, data: str) -> None:
    width, depth = WIDTHS[letter]
    write_encoder(tmp_path, f"dinov2_vit{letter}14_pretrain", width, depth)
    path = write_head(tmp_path, f"dinov2_vit{letter}14_{data}_{kind}_head", width, kind, data)
    model = (load_segmenter if kind == "ms" else load_depth)(path, device="cpu")
    assert model.blocks == {"linear": (11,), "ms": (8, 9, 10, 11)}.get(kind, (2, 5, 8, 11))
    assert torch.isfinite(model(torch.rand(1, 3, 40, 61))).all()


@pytest.mark.slow
def test_the_blocks_of_a_large_encoder(tmp_path: Path) -> None:
    """With narrow MLPs, which are not what the blocks are told by."""
    manifest = dinov2_manifest(1024, 24, side=2)
    manifest = {key: [64 if side == 4096 else side for side in shape] for key, shape in manifest.items()}
    torch.save(make_state_dict(manifest, 4), tmp_path / "dinov2_vitl14_pretrain.pth")
    path = write_head(tmp_path, "dinov2_vitl14_kitti_dpt_head", 1024, "dpt", "kitti")
    model = load_depth(path, device="cpu")
    assert (model.blocks, model.maximum) == ((4, 11, 17, 23), 80.0)
    assert torch.isfinite(model(torch.rand(1, 3, 28, 42))).all()


def test_a_head_for_another_width_names_both(tmp_path: Path) -> None:
    small = write_encoder(tmp_path, "dinov2_vits14_pretrain", 384, 12)
    base = write_encoder(tmp_path, "dinov2_vitb14_pretrain", 768, 2)
    both = r"width (by its name, )?{}.*; the given encoder has width {}"
    for kind, data in (("linear", "nyu"), ("dpt", "nyu"), ("linear", "ade20k"), ("linear", None)):
        stem = "_".join(filter(None, ("dinov2_vits14", data, kind, "head")))
        load = {"nyu": load_depth, "ade20k": load_segmenter, None: load_classifier}[data]
        named = write_head(tmp_path, stem, 384, kind, data)
        plain = write_head(tmp_path, "plain", 384, kind, data)
        for path in (named, plain):
            options = {"depth_range": (0.001, 10.0)} if load is load_depth else {}
            with pytest.raises(CheckpointError, match=both.format(384, 768)):
                load(path, encoder=base, device="cpu", **options)
    wide = write_head(tmp_path, "dinov2_vitg14_nyu_linear_head", 1536, "linear", "nyu")
    with pytest.raises(CheckpointError, match=both.format(1536, 384)):  # its shape alone would be linear4 of ViT-S
        load_depth(wide, encoder=small, device="cpu")


def test_registers_must_agree_with_the_heads_name(tmp_path: Path) -> None:
    plain = write_encoder(tmp_path, "dinov2_vits14_pretrain", 384, 12)
    with_registers = write_encoder(tmp_path, "dinov2_vits14_reg4_pretrain", 384, 12, registers=4)
    head = write_head(tmp_path, "dinov2_vits14_reg4_linear4_head", 384, "linear4")
    assert load_classifier(head, device="cpu").encoder.config.registers == 4
    with pytest.raises(CheckpointError, match=r"with registers; the given one is without.*reg4_pretrain"):
        load_classifier(head, encoder=plain, device="cpu")
    head = write_head(tmp_path, "dinov2_vits14_linear_head", 384, "linear")
    with pytest.raises(CheckpointError, match="without registers; the given one is with registers"):
        load_classifier(head, encoder=with_registers, device="cpu")


def test_a_giant_encoder_has_a_gated_mlp(tmp_path: Path) -> None:
    """DINOv2's ViT-g in small: `mlp.w12`, `mlp.w3`, and its own blocks for the heads."""
    manifest = dinov2_manifest(128, 40, 3)
    for block in range(40):
        at = f"blocks.{block}.mlp."
        manifest = {key: shape for key, shape in manifest.items() if not key.startswith(at)}
        manifest |= {f"{at}w12.weight": [160, 128], f"{at}w12.bias": [160]}
        manifest |= {f"{at}w3.weight": [128, 80], f"{at}w3.bias": [128]}
    torch.save(make_state_dict(manifest, 1), tmp_path / "giant.pth")
    head = write_head(tmp_path, "mine", 128, "linear4", "kitti")
    model = load_depth(head, encoder=tmp_path / "giant.pth", device="cpu", depth_range=(0.001, 80.0))
    assert (model.encoder.config.gated, model.encoder.config.hidden) == (True, 80)
    assert model.blocks == (9, 19, 29, 39)
    assert torch.isfinite(model(torch.rand(1, 3, 30, 44))).all()
