"""Official files in, networks out: the parity fixtures through files, our own safetensors, and what is refused."""

from __future__ import annotations

import shutil
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from dune_cli import load_encoder, load_two_view
from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.weight_files import read_weights, write_safetensors
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.mast3r import TwoViewModel, TwoViewOutput
from support.published_files import (
    TEACHERS,
    TOKENS,
    Fixture,
    check_two_view,
    deviation,
    dinov2_manifest,
    dune_manifest,
    dune_tree,
    make_image,
    make_state_dict,
    mast3r_tree,
    small_two_files,
    two_files,
)


def converted(path: Path, licence: str = "test licence") -> Path:
    """The file as our own safetensors, beside it."""
    file = read_weights(path)
    tensors, header = adapters.to_safetensors(file.checkpoint, file.metadata)
    target = path.with_suffix(".safetensors")
    write_safetensors(target, tensors, header | {"dune.licence": licence})
    return target


@pytest.fixture(scope="module")
def dune_fixture() -> Fixture:
    return Fixture("dune_vitsmall14_336")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("safetensors", [False, True])
def test_a_dune_file(dune_fixture: Fixture, tmp_path: Path, prefix: str, safetensors: bool) -> None:
    path = tmp_path / "own.pth"
    torch.save(dune_tree(dune_fixture.state(), prefix), path)
    encoder = load_encoder(converted(path) if safetensors else path, device="cpu")
    tokens, stride = encoder(dune_fixture.image()), dune_fixture.config["token_stride"]
    assert deviation(tokens.patches[0, ::stride], dune_fixture.expected["norm_patch"]) < TOKENS
    projected = encoder.project(dune_fixture.image(), TEACHERS[1])
    assert deviation(projected.cls[0], dune_fixture.expected[f"proj_cls/{TEACHERS[1]}"]) < TOKENS
    assert (encoder.patch, encoder.width, encoder.teachers) == (14, 384, TEACHERS)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.source.name == ("own.safetensors" if safetensors else "own.pth")
    assert encoder.source.sha256 is not None
    assert encoder.source.licence == ("test licence" if safetensors else "unknown")
    norm = encoder.teacher_norms[TEACHERS[0]].normalizers["cls"]
    state = dune_fixture.state()
    assert torch.equal(norm.std, state[f"teacher_norms.{TEACHERS[0]}.normalizers.cls.std"])


def test_a_published_file_name_brings_its_licence(dune_fixture: Fixture, tmp_path: Path) -> None:
    path = tmp_path / "dune_vitsmall14_336.pth"
    torch.save(dune_tree(dune_fixture.state()), path)
    source = load_encoder(path, device="cpu").source
    assert source.name == "dune-vits14-336"
    assert "non-commercial" in source.licence.lower()


@pytest.mark.parametrize("arguments", [None, Namespace(), Namespace(enc_args={"arch": "vit_large"}, teachers=[])])
def test_shapes_count_and_not_the_arguments(dune_fixture: Fixture, tmp_path: Path, arguments: Any) -> None:
    tree = {"model": dune_fixture.state()} | ({} if arguments is None else {"args": arguments})
    torch.save(tree, tmp_path / "own.pth")
    encoder = load_encoder(tmp_path / "own.pth", device="cpu")
    assert encoder.teachers == TEACHERS
    tokens = encoder(dune_fixture.image())
    assert deviation(tokens.cls[0], dune_fixture.expected["norm_cls"]) < TOKENS


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
@pytest.mark.parametrize("safetensors", [False, True])
def test_a_dinov2_file(tmp_path: Path, name: str, safetensors: bool) -> None:
    fixture = Fixture(name)
    path = tmp_path / "own.pth"
    torch.save(fixture.state(), path)
    encoder = load_encoder(converted(path) if safetensors else path, device="cpu")
    tokens = encoder(fixture.image())
    assert deviation(tokens.patches[0, :: fixture.config["patch_stride"]], fixture.expected["patch"]) < TOKENS
    with pytest.raises(ValueError, match="no projector"):
        encoder.project(fixture.image(), TEACHERS[0])


@pytest.mark.parametrize("safetensors", [False, True])
def test_a_mast3r_file(tmp_path: Path, safetensors: bool) -> None:
    fixture = Fixture("mast3r_mini")
    path = tmp_path / "own.pth"
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), path)
    model = load_two_view(converted(path) if safetensors else path, device="cpu")
    assert (model.patch, model.size, model.crop_square_to_4_3) == (16, 512, True)
    check_two_view(_run(model, fixture), fixture)


def _run(model: TwoViewModel, fixture: Fixture | None = None) -> TwoViewOutput:
    """On the fixture's images, or on two small ones."""
    if fixture is None:
        return model(*make_image([2, 3, 56, 70], 1).split(1))
    return model(*(fixture.image(seed) for seed in fixture.config["image_seeds"]))


def _equal(one: TwoViewOutput, two: TwoViewOutput) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(one))


def test_dune_mast3r_finds_its_encoder_beside_it(tmp_path: Path) -> None:
    fixture = Fixture("dunemast3r_vitsmall")
    decoder, _ = two_files(fixture, tmp_path)
    model = load_two_view(decoder, device="cpu")
    assert (model.patch, model.size, model.crop_square_to_4_3) == (14, 518, False)
    check_two_view(_run(model, fixture), fixture)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small decoder and its encoder, under the names of the fixture's."""
    return small_two_files(tmp_path_factory.mktemp("pair"))


def test_dune_mast3r_with_its_encoder_given_or_in_the_weights_folder(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = pair
    alone = shutil.copy(decoder, tmp_path / "decoder.pth")
    with pytest.raises(WeightsMissing, match=r"needs its encoder dune_vitsmall14_448\.pth: .*dune weights pull"):
        load_two_view(alone, device="cpu")
    given = load_two_view(alone, encoder=encoder, device="cpu")
    assert _equal(_run(given), _run(load_two_view(decoder, device="cpu")))
    monkeypatch.setenv("DUNE_WEIGHTS", str(encoder.parent))
    assert _equal(_run(load_two_view(alone, device="cpu")), _run(given))


def test_dune_mast3r_converted_with_converted_encoder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    files = [converted(Path(shutil.copy(path, tmp_path))) for path in pair]
    found = _run(load_two_view(files[0], encoder=files[1], device="cpu"))
    assert _equal(found, _run(load_two_view(pair[0], device="cpu")))


def test_a_decoder_on_an_encoder_of_another_width_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save(dune_tree(make_state_dict(dune_manifest(768, 1, 4, {}), 1)), tmp_path / "base.pth")
    with pytest.raises(CheckpointError, match=r"width 64 \(dune_vitsmall14_448\.pth\); the given one has width 768"):
        load_two_view(pair[0], encoder=tmp_path / "base.pth", device="cpu")


def test_a_file_of_the_other_kind_says_what_it_is(pair: tuple[Path, Path]) -> None:
    decoder, encoder = pair
    with pytest.raises(CheckpointError, match=r"a DUNE encoder \(ViT of width 64.*not a two-view model; load_encoder"):
        load_two_view(encoder, device="cpu")
    with pytest.raises(CheckpointError, match=r"a DUNE \+ MASt3R model .*not an encoder model; load_two_view"):
        load_encoder(decoder, device="cpu")
    with pytest.raises(CheckpointError, match="a DUNE \\+ MASt3R model"):
        load_two_view(decoder, encoder=decoder, device="cpu")


def test_an_encoder_for_a_model_that_has_its_own_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match="has its own encoder"):
        load_two_view(tmp_path / "own.pth", encoder=pair[1], device="cpu")


@pytest.mark.parametrize("width, name", [(384, "ViT-S/14"), (768, "ViT-B/14"), (1024, "ViT-L/14")])
@pytest.mark.parametrize("registers", [0, 4])
def test_sizes_are_recognised_from_shapes_alone(tmp_path: Path, width: int, name: str, registers: int) -> None:
    path = tmp_path / "own.pth"
    torch.save(make_state_dict(dinov2_manifest(width, 2, 6, registers), 1), path)
    found = adapters.describe(read_weights(path).checkpoint)
    assert name in found.architecture
    assert (found.patch, found.width, found.kind) == (14, width, "encoder")
    encoder = load_encoder(path, device="cpu")
    assert encoder.config.position_policy == ("antialias" if registers else "offset")
    assert encoder.config.heads == width // 64
    assert encoder(make_image([2, 3, 42, 70], 1)).patches.shape == (2, 15, width)


def test_number_type_and_device_words(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(make_state_dict(dinov2_manifest(128, 1, 3), 1), path)
    assert load_encoder(path, device="cpu", dtype="bfloat16").blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match="float8"):
        load_encoder(path, dtype="float8")
    with pytest.raises(UserError, match="gpu"):
        load_encoder(path, device="gpu")


def test_geometry_stays_in_float32_unless_asked(tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), tmp_path / "own.pth")
    for word, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_two_view(tmp_path / "own.pth", device="cpu", dtype=word)
        assert model.decoder.blocks1[0].attn.qkv.weight.dtype == dtype
        assert model.head1.local.fc1.weight.dtype == torch.float32


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = make_state_dict(dinov2_manifest(128, 1, 3), 1)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "own.pth")
    assert load_encoder(tmp_path / "own.pth", device="cpu").norm.weight.dtype == torch.float32


def test_missing_weights_name_their_cure() -> None:
    with pytest.raises(WeightsMissing, match="dune weights pull dune-vitb14-448'"):
        load_encoder("dune_vitbase14_448.pth", device="cpu")
    with pytest.raises(WeightsMissing, match="dune weights pull mast3r-vitl"):
        load_two_view("mast3r-vitl", device="cpu")


def test_an_unknown_file_is_described(tmp_path: Path) -> None:
    torch.save({"net": {"a": torch.zeros(3, 4)}, "epoch": 1}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"top-level keys: net, epoch; 1 tensors, 12 parameters"):
        load_encoder(tmp_path / "own.pth", device="cpu")
