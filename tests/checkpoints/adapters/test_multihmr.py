"""Multi-HMR's files as people have them: with and without args, wrapped, with leftovers, converted, damaged, wrong."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dune_cli.checkpoints import adapters, weight_files
from dune_cli.checkpoints.loader import load_encoder, load_human_network, load_two_view
from dune_cli.errors import CheckpointError
from support.human_files import (
    ANNY,
    SMPLX,
    human_image,
    manifest_of,
    official_tree,
    small_state,
    write_human,
    write_small,
)
from support.published_files import dune_manifest, dune_tree, make_state_dict

BOTH = pytest.mark.parametrize("name", [SMPLX, ANNY])
ARGS = {SMPLX: {"img_size": [112]}, ANNY: {"img_size": 112}}


def _tree(name: str) -> dict[str, Any]:
    return official_tree(name, small_state(name), xat_depth=3, **ARGS[name])


def _people(path: Path, name: str) -> Any:
    network = load_human_network(path, "cpu")
    image = torch.nn.functional.interpolate(human_image(name), (112, 112))
    (people,) = network(image, None, 0.3)
    assert len(people) > 1
    return people


def _save(path: Path, tree: dict[str, Any]) -> Path:
    torch.save(tree, path)
    return path


def _without_args(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != "args"}


def _wrapped(tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in tree["model_state_dict"].items()}}


def _with_body(tree: dict[str, Any]) -> dict[str, Any]:
    left = {"smpl_layer.bm_x.v_template": torch.zeros(10, 3), "smplx_layer.faces": torch.zeros(4, 3, dtype=torch.int64)}
    return tree | {"model_state_dict": left | tree["model_state_dict"]}


def _bare(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["model_state_dict"]


def _with_args_as_a_dictionary(tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {"args": vars(tree["args"])}


VARIANTS = [_without_args, _wrapped, _with_body, _bare, _with_args_as_a_dictionary]


@BOTH
@pytest.mark.parametrize("change", VARIANTS, ids=lambda change: change.__name__.strip("_"))
def test_every_form_of_the_file_gives_the_same_people(name: str, change: Callable[..., Any], tmp_path: Path) -> None:
    plain = _people(_save(tmp_path / "plain.pt", _tree(name)), name)
    changed = _people(_save(tmp_path / "changed.pt", change(_tree(name))), name)
    for field in ("scores", "cells", "head", "rotations", "shape"):
        assert torch.equal(getattr(plain, field), getattr(changed, field)), field


@BOTH
def test_converted_to_safetensors_and_back(name: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "a.pt", _tree(name))
    file = weight_files.read_weights(path)
    tensors, header = adapters.to_safetensors(file.checkpoint, file.metadata)
    weight_files.write_safetensors(tmp_path / "a.safetensors", tensors, header)
    assert not any("mask_token" in key for key in tensors)
    for field in ("scores", "head", "rotations", "shape"):
        found = getattr(_people(tmp_path / "a.safetensors", name), field)
        assert torch.equal(found, getattr(_people(path, name), field)), field


@BOTH
def test_described_in_words(name: str, tmp_path: Path) -> None:
    file = weight_files.read_weights(write_small(tmp_path / "small.pt", name))
    found = adapters.describe(file.checkpoint, file.metadata)
    assert (found.layout, found.kind) == ("multihmr-anny" if name == ANNY else "multihmr", "human")
    assert "112 px" in found.notes[0]
    assert found.patch == 14
    assert found.width == 128


def test_eleven_betas_start_from_the_kid_ones(tmp_path: Path) -> None:
    state = small_state(SMPLX)
    head = "x_attention_head."
    generator = torch.Generator().manual_seed(0)
    grow = [f"{head}decshape.weight", f"{head}decshape.bias"]
    state |= {key: torch.cat([state[key], state[key][:1] * 0]) for key in grow}
    embedding = state[f"{head}transformer.to_token_embedding.weight"]
    state[f"{head}transformer.to_token_embedding.weight"] = torch.cat(
        [embedding, torch.randn(1024, 1, generator=generator)], 1
    )
    tree = {"args": Namespace(num_betas=11), "model_state_dict": state}
    network = load_human_network(_save(tmp_path / "kid.pt", tree), "cpu")
    assert network.config.betas == 11
    assert torch.equal(network.x_attention_head.init_betas, state[f"{head}init_betas_kid"])
    (people,) = network(torch.rand(1, 3, 112, 112, generator=generator), None, 0.3)
    assert people.shape.shape == (len(people), 11)


def test_the_size_is_read_off_the_weights(tmp_path: Path) -> None:
    path = write_small(tmp_path / "ten.pt", ANNY, cells=10, layers=1, depth=1)
    network = load_human_network(path, "cpu")
    assert network.size_px == 140
    assert len(network.decoder["transformer"].layers) == 1
    assert len(network.backbone.blocks) == 1


PUBLISHED = [
    (SMPLX, 896, 1024, 24),
    (SMPLX, 672, 1024, 24),
    (SMPLX, 672, 768, 12),
    (SMPLX, 672, 384, 12),
    (SMPLX, 1288, 1024, 24),
    (ANNY, 672, 1024, 24),
]


@pytest.mark.parametrize(("name", "size", "width", "depth"), PUBLISHED)
def test_all_published_sizes_are_understood(name: str, size: int, width: int, depth: int) -> None:
    with torch.device("meta"):  # shapes without numbers
        manifest = manifest_of(name, width, size // 14, depth, 2)
        state = {key: torch.empty(shape) for key, shape in manifest.items()}
    tree = official_tree(name, state, img_size=size if name == ANNY else [size])
    found = adapters.describe(tree)
    assert found.width == width
    assert found.notes[0] == f"square images of {size} px"
    assert f"{depth} blocks" in found.architecture
    adapter, _ = adapters.identify(tree)
    network = adapter._read(tree)[1]
    unused = {"eye", "x_attention_head.init_betas_kid"}
    ours = {key.replace("backbone.encoder.", "backbone.") for key in state if "mask_token" not in key} - unused
    assert set(network.state_dict()) == ours
    assert all(
        tuple(value.shape) == tuple(manifest[_in_file(key, name)]) for key, value in network.state_dict().items()
    )


def _in_file(key: str, name: str) -> str:
    return key.replace("backbone.", "backbone.encoder.", 1) if name == SMPLX and key.startswith("backbone.") else key


WRONG_ARGS = [
    (SMPLX, {"img_size": [224, 224]}, "images of 224 px, its weights are for 112 px"),
    (ANNY, {"img_size": 224}, "images of 224 px, its weights are for 112 px"),
    (SMPLX, {"camera_embedding": "none"}, "camera_embedding='none'"),
    (SMPLX, {"nearness": 0}, "nearness=0"),
    (SMPLX, {"camera_embedding_num_bands": 8}, "do not hold 8 bands"),
    (SMPLX, {"xat_num_heads": 7}, "for 7 heads"),
    (SMPLX, {"xat_num_heads": "many"}, "xat_num_heads='many'"),
    (ANNY, {"person_center": "pelvis"}, "person_center='pelvis'"),
    (ANNY, {"xat_depth": 5}, "args say 5 layers, its weights have 3"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG_ARGS)
def test_args_that_contradict_the_weights_or_the_code(
    name: str, wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"xat_depth": 3} | ARGS[name] | wrong
    path = _save(tmp_path / "wrong.pt", official_tree(name, small_state(name), **given))
    with pytest.raises(CheckpointError, match=rf"wrong\.pt: .*{message}"):
        load_human_network(path, "cpu")


@BOTH
def test_a_missing_key_is_named_as_in_the_file(name: str, tmp_path: Path) -> None:
    tree = _tree(name)
    key = "encoder.backbone.norm.bias" if name == ANNY else "backbone.encoder.norm.bias"
    del tree["model_state_dict"][key]
    with pytest.raises(CheckpointError, match=f"1 key missing: {key}"):
        load_human_network(_save(tmp_path / "cut.pt", tree), "cpu")


@BOTH
def test_files_in_the_wrong_place_say_where_they_belong(name: str, tmp_path: Path) -> None:
    human = write_small(tmp_path / "human.pt", name)
    for load in (load_encoder, load_two_view):
        with pytest.raises(CheckpointError, match=r"holds a Multi-HMR model on .*load_human \(dune human --model\)"):
            load(human, device="cpu")
    state = make_state_dict(dune_manifest(64, 1, 4, {}), 1)
    with pytest.raises(CheckpointError, match=r"not a human model; load_encoder \(dune encode"):
        load_human_network(_save(tmp_path / "dune.pth", dune_tree(state)), "cpu")


@pytest.mark.parametrize("name", [SMPLX, ANNY])
def test_the_fixture_as_a_whole_official_file(name: str, tmp_path: Path) -> None:
    network = load_human_network(write_human(tmp_path / "official.pt", name), "cpu")
    assert network.size_px == 224
    assert network.source.name == "official.pt"
    assert len(network.source.sha256) == 64
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
