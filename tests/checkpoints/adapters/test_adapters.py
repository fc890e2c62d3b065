"""The adapters: key maps, constructor strings, strict loading, descriptions."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.adapters import dinov2, dune, dune_mast3r, mast3r
from dune_cli.checkpoints.adapters._two_view import read_constructor
from dune_cli.checkpoints.state_dict import KeyMap, unwrap
from dune_cli.checkpoints.weight_files import read_weights
from dune_cli.errors import CheckpointError
from dune_cli.models.mast3r import ConfidenceMode
from support.published_files import (
    TEACHERS,
    Fixture,
    dinov2_manifest,
    dune_manifest,
    dune_tree,
    make_image,
    make_state_dict,
    mast3r_manifest,
    mast3r_tree,
    small_two_files,
)

INFINITY = float("inf")
FULL = Fixture("mast3r_mini").config["model"]


def mini_state() -> dict[str, torch.Tensor]:
    return make_state_dict(mast3r_manifest(), 21)


def test_key_maps_translate_both_ways() -> None:
    keymap = KeyMap(rules=(("enc.blocks.{c}.{i}.", "blocks.{i}."), ("enc.", "")), ignored=("enc.mask",))
    state = {"enc.blocks.3.7.w": torch.zeros(1), "enc.norm": torch.zeros(2), "enc.mask": torch.zeros(3)}
    assert set(keymap.apply(state)) == {"blocks.7.w", "norm"}
    assert keymap.published("blocks.7.w") == "enc.blocks.0.7.w"


def test_wrapper_prefixes_go_wherever_they_stand() -> None:
    state = {"module.encoder._orig_mod.norm.weight": torch.zeros(1)}
    assert list(unwrap(state)) == ["encoder.norm.weight"]
    with pytest.raises(CheckpointError, match="twice"):
        unwrap(state | {"encoder.norm.weight": torch.zeros(1)})


def test_each_layout_is_recognised_and_described(tmp_path: Path) -> None:
    fixture = Fixture("dune_vitsmall14_336")
    found = adapters.describe(dune_tree(fixture.state()))
    assert (found.layout, found.kind, found.teachers, found.patch, found.width) == (
        "dune",
        "encoder",
        TEACHERS,
        14,
        384,
    )
    assert "ViT-S/14" in found.architecture
    assert "4 registers" in found.architecture
    assert found.parameters == sum(t.numel() for key, t in fixture.state().items() if key != "encoder.mask_token")
    assert any("336 px" in note for note in found.notes)
    assert any("optimizer" in note for note in found.notes)
    found = adapters.describe(Fixture("dinov2_vits14_reg").state())
    assert (found.layout, found.teachers, found.width) == ("dinov2", (), 384)
    found = adapters.describe(mast3r_tree(FULL, mini_state()))
    assert (found.layout, found.kind, found.patch, found.width) == ("mast3r", "two-view", 16, 192)
    found = adapters.describe(read_weights(small_two_files(tmp_path)[0]).checkpoint)
    assert (found.layout, found.kind, found.patch, found.width) == ("dune+mast3r", "two-view", 14, 64)
    assert "dune_vitsmall14_448.pth" in found.notes[0]


def test_an_unknown_tree_is_described_all_the_same() -> None:
    tree = {"config": {"a": 1}, "nets": [{"w": torch.zeros(2, 3)}, {"w": torch.zeros(5)}], 3: None}
    found = adapters.describe(tree)
    assert (found.layout, found.kind, found.parameters) == ("unknown", "unknown", 11)
    assert found.notes[0] == "top-level keys: config, nets, 3"
    assert adapters.find(tree) is None
    assert adapters.describe({}).parameters == 0


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_keys_that_do_not_fit_are_listed_in_the_published_names(change: str) -> None:
    state = make_state_dict(dune_manifest(128, 3, 4, {"t": 16}), 1)
    key = "encoder.blocks.0.2.attn.proj.bias"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        state["encoder.blocks.0.2.attn.extra"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(64)
    said = {
        "missing": r"1 key missing: encoder\.blocks\.0\.2\.attn\.proj\.bias$",
        "unexpected": r"1 key unexpected: encoder\.blocks\.0\.2\.attn\.extra$",
        "shape": r"encoder\.blocks\.0\.2\.attn\.proj\.bias is \(64\), not \(128\)$",
    }
    with pytest.raises(CheckpointError, match=said[change]):
        dune.build({"model": state})


def test_long_lists_are_cut_and_counted() -> None:
    state = make_state_dict(dinov2_manifest(128, 3, 4), 1)
    kept = {key: value for key, value in state.items() if not key.startswith("blocks.1.") or key.endswith("ls1.gamma")}
    with pytest.raises(CheckpointError, match=r"13 keys missing: blocks\.1\.norm1\.weight, .* and 3 more$"):
        dinov2.build(kept)


@pytest.mark.parametrize(
    "damage, said",
    [
        ({"pos_embed": torch.zeros(1, 18, 128)}, "do not form a square"),
        ({"pos_embed": torch.zeros(17, 128)}, "has the shape"),
        ({"patch_embed.proj.weight": torch.zeros(128, 0, 14, 14)}, "has the shape"),
        ({"patch_embed.proj.weight": torch.zeros(100, 3, 14, 14)}, "attention heads"),
    ],
)
def test_impossible_sizes_are_errors(damage: dict[str, torch.Tensor], said: str) -> None:
    state = make_state_dict(dinov2_manifest(128, 1, 4), 1) | damage
    with pytest.raises(CheckpointError, match=said):
        dinov2.build(state)


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "  AsymmetricMASt3R( desc_conf_mode = ('exp',0,inf),two_confs=True,output_mode='pts3d+desc24' ,"
        "conf_mode=('exp',1,inf), dec_num_heads=3,\n enc_num_heads=3, depth_mode=('exp',-inf,inf),"
        "head_type='catmlp+dpt', pos_embed='RoPE100', freeze='none')\n",
        "AsymmetricMASt3R(output_mode='pts3d+desc24', enc_num_heads=3, dec_num_heads=3, two_confs=True, "
        "desc_conf_mode=('exp', 0, float('inf')), patch_size=16)",
    ],
)
def test_constructor_strings_are_read_in_any_order(text: str) -> None:
    found = read_constructor(text)
    assert (found.encoder_heads, found.decoder_heads, found.rope_base) == (3, 3, 100.0)
    assert (found.descriptor_channels, found.own_descriptor_confidence) == (24, True)
    assert found.confidence == ConfidenceMode(1, INFINITY)
    assert found.descriptor_confidence == ConfidenceMode(0, INFINITY)


def test_constructor_defaults() -> None:
    found = read_constructor("AsymmetricMASt3R(output_mode='pts3d+desc16', conf_mode=('exp', 2, 9))")
    assert (found.patch, found.own_descriptor_confidence) == (None, False)
    assert found.descriptor_confidence == found.confidence == ConfidenceMode(2, 9)


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no constructor string"),
        ("AsymmetricMASt3R(", "cannot read"),
        ("AsymmetricMASt3R(a=__import__('os').system('true'))", "cannot read"),
        ("AsymmetricMASt3R(a=open('x'))", "cannot read"),
        ("AsymmetricMASt3R(**{})", "cannot read"),
        ("AsymmetricMASt3R(512)", "cannot read"),
        ("os.system(a=1)", "cannot read"),
        ("AsymmetricMASt3R(a=" + "(" * 5000 + ")" * 5000 + ")", "cannot read"),
        ("x" * 30_000, "no constructor string"),
        ("AsymmetricCroCo3DStereo(output_mode='pts3d')", "made by 'AsymmetricCroCo3DStereo'"),
        ("AsymmetricMASt3R(output_mode='pts3d')", "output_mode='pts3d'"),
        ("AsymmetricMASt3R(output_mode='pts3d+desc24', head_type='linear')", "head_type='linear'"),
        ("AsymmetricMASt3R(output_mode='pts3d+desc24', pos_embed='cosine')", "pos_embed='cosine'"),
        ("AsymmetricMASt3R(output_mode='pts3d+desc24', depth_mode=('linear', 0, inf))", "depth_mode"),
        ("AsymmetricMASt3R(output_mode='pts3d+desc24', conf_mode=('sigmoid', 0, 1))", "conf_mode"),
        ("AsymmetricMASt3R(output_mode='pts3d+desc24', dec_num_heads='12')", "dec_num_heads"),
    ],
)
def test_constructor_strings_that_are_no_data_or_unknown(text: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_constructor(text)


def test_a_constructor_that_contradicts_the_weights() -> None:
    with pytest.raises(CheckpointError, match=r"6400 values a token.*24 x 16 x 16 = 6144"):
        mast3r.build(mast3r_tree(FULL.replace("two_confs=True", "two_confs=False"), mini_state()))
    with pytest.raises(CheckpointError, match="says patch 14, the weights 16"):
        mast3r.build(mast3r_tree(FULL.replace("enc_depth=4", "enc_depth=4, patch_size=14"), mini_state()))
    with pytest.raises(CheckpointError, match="96 cannot be shared by 5"):
        mast3r.build(mast3r_tree(FULL.replace("dec_num_heads=3", "dec_num_heads=5"), mini_state()))


def test_one_confidence_for_points_and_descriptors() -> None:
    state = mini_state()
    for head in ("downstream_head1", "downstream_head2"):
        for leaf in ("weight", "bias"):
            key = f"{head}.head_local_features.fc2.{leaf}"
            state[key] = state[key][: 24 * 256]
    text = FULL.replace("two_confs=True, desc_conf_mode=('exp', 0, inf), ", "")
    assert "two_confs" not in text
    model = mast3r.build(mast3r_tree(text, state)).eval().requires_grad_(False)
    images = make_image([2, 3, 32, 48], 1).split(1)
    out = model(*images)
    assert torch.equal(out.descriptor_confidence1, out.confidence1)
    assert out.descriptors2.shape[-1] == 24
    alone = model(*images, points=False)
    assert alone.confidence1 is None
    assert torch.equal(alone.descriptor_confidence2, out.descriptor_confidence2)


def test_a_checkpoint_without_second_decoder_copies_the_first() -> None:
    state = {key: value for key, value in mini_state().items() if not key.startswith("dec_blocks2.")}
    model = mast3r.build(mast3r_tree(FULL, state))
    for one, two in zip(model.decoder.blocks1.parameters(), model.decoder.blocks2.parameters()):
        assert torch.equal(one, two)
        assert one.data_ptr() != two.data_ptr()


def test_either_name_of_the_reducing_convolutions_will_do() -> None:
    state = mini_state()
    plain = {key: value for key, value in state.items() if ".scratch.layer_rn." not in key}
    second = {key: value for key, value in state.items() if "_rn.weight" not in key}
    assert len(plain) == len(second) == len(state) - 8
    found = [mast3r.build(mast3r_tree(FULL, kept)).head2.points.reduce[3].weight for kept in (plain, second)]
    assert torch.equal(*found)


def test_unused_keys_are_ignored_by_name_only(tmp_path: Path) -> None:
    decoder, encoder = (read_weights(path).checkpoint for path in small_two_files(tmp_path))
    inside = {key.replace("module.encoder.", "dune_backbone."): value for key, value in encoder["model"].items()}
    tree = {**decoder, "model": {**decoder["model"], **inside}}
    tree["model"]["mast3r.enc_blocks.0.norm1.weight"] = torch.zeros(3)
    dune_mast3r.build(tree)
    tree["model"]["mast3r.other"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 key unexpected: mast3r\.other$"):
        dune_mast3r.build(tree)


@pytest.mark.parametrize(
    "name, file",
    [
        ("dune_vitbase_14_448_paper_encoder", "dune_vitbase14_448_paper.pth"),
        ("dune_vitsmall_14_448_encoder", "dune_vitsmall14_448.pth"),
        ("dune_vitbase_14_336_encoder", "dune_vitbase14_336.pth"),
    ],
)
def test_the_encoder_file_of_a_decoder(name: str, file: str) -> None:
    assert dune_mast3r.encoder_file({"dune_backbone_name": name}) == file


@pytest.mark.parametrize("name", [None, "", "../../etc/passwd", 3])
def test_a_decoder_that_names_no_encoder(name: Any) -> None:
    with pytest.raises(CheckpointError, match="--encoder"):
        dune_mast3r.encoder_file({"dune_backbone_name": name})


def test_conversion_keeps_what_counts_and_nothing_else() -> None:
    state = make_state_dict(dune_manifest(128, 2, 4, {"t": 16}), 1)
    tree = {"model": {f"module.{key}": value for key, value in state.items()}, "args": Namespace(), "optimizer": {}}
    tensors, header = adapters.to_safetensors(tree)
    assert set(tensors) == set(state) - {"encoder.mask_token"}
    assert header["dune.layout"] == "dune"
    again = adapters.describe(tensors, header)
    assert (again.layout, again.teachers) == ("dune", ("t",))
    assert adapters.to_safetensors(tensors, header)[1] == header
    tensors, header = adapters.to_safetensors(mast3r_tree(FULL, mini_state()))
    assert adapters.describe(tensors, header).layout == "mast3r"
    with pytest.raises(CheckpointError, match="JSON"):
        adapters.describe(tensors, header | {"dune.facts": "{"})
