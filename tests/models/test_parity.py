"""The networks against the published implementations' outputs (float32, the fixtures of tests/parity)."""

from __future__ import annotations

import pytest
import torch

from dune_cli.checkpoints.adapters import dinov2, dune, dune_mast3r, mast3r
from dune_cli.models.dpt import to_channels_last
from dune_cli.models.mast3r import TwoViewModel
from support.published_files import TEACHERS, TOKENS, Fixture, check_two_view, deviation, mast3r_tree


def test_dune_tokens_and_projections() -> None:
    fixture = Fixture("dune_vitsmall14_336")
    expected, stride = fixture.expected, fixture.config["token_stride"]
    encoder = dune.build({"model": fixture.state()}).eval().requires_grad_(False)
    image = fixture.image()
    normed, plain = encoder(image), encoder(image, norm=False)
    assert encoder.teachers == TEACHERS
    assert normed.grid == (16, 22)
    assert deviation(normed.cls[0], expected["norm_cls"]) < TOKENS
    assert deviation(normed.registers[0], expected["norm_reg"]) < TOKENS
    assert deviation(normed.patches[0, ::stride], expected["norm_patch"]) < TOKENS
    assert deviation(plain.cls[0], expected["prenorm_cls"]) < TOKENS
    assert deviation(plain.patches[0, ::stride], expected["prenorm_patch"]) < TOKENS
    for teacher in TEACHERS:
        tokens = encoder.project(image, teacher)
        assert tokens.registers.shape[1] == 0
        assert deviation(tokens.cls[0], expected[f"proj_cls/{teacher}"]) < TOKENS
        assert deviation(tokens.patches[0, ::stride], expected[f"proj_patch/{teacher}"]) < TOKENS


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_dinov2_tokens(name: str) -> None:
    fixture = Fixture(name)
    expected, config = fixture.expected, fixture.config
    encoder = dinov2.build(fixture.state()).eval().requires_grad_(False)
    tokens = encoder(fixture.image())
    assert deviation(tokens.cls[0], expected["cls"]) < TOKENS
    assert deviation(tokens.patches[0, :: config["patch_stride"]], expected["patch"]) < TOKENS
    (middle,) = encoder.intermediate(fixture.image(), [config["mid_layer"]], norm=False)
    assert deviation(middle.cls[0], expected["mid_cls"]) < TOKENS
    assert deviation(middle.patches[0, :: config["mid_stride"]], expected["mid_patch"]) < TOKENS


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["mast3r_mini", "dunemast3r_vitsmall"])
def test_two_view(name: str, channels_last: bool) -> None:
    fixture = Fixture(name)
    model = _build(fixture).eval().requires_grad_(False)
    if channels_last:
        to_channels_last(model)
    with torch.inference_mode():
        out = model(*(fixture.image(seed) for seed in fixture.config["image_seeds"]))
    check_two_view(out, fixture)


def _build(fixture: Fixture) -> TwoViewModel:
    config = fixture.config
    if "model" in config:
        return mast3r.build(mast3r_tree(config["model"], fixture.state()))
    names = {key: config[key] for key in ("dune_backbone_name", "mast3r_model_str")}
    return dune_mast3r.build({**names, "model": fixture.state()})
