"""A two-view model as an ONNX file, with open sizes: what ONNX Runtime makes of it is what torch makes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dune_cli.export import onnx_file
from dune_cli.export.networks import network_of
from dune_cli.export.session import OnnxSession
from dune_cli.models.dpt import DptConfig
from dune_cli.models.mast3r import ConfidenceMode, DecoderConfig, DunePatches, HeadConfig, TwoViewDecoder, TwoViewModel
from dune_cli.models.vit import VisionTransformer, VitConfig

VIT = VitConfig(
    width=32, depth=1, heads=2, hidden=32, patch=14, registers=2, positions_side=4, position_policy="offset"
)


def small_model() -> TwoViewModel:
    head = HeadConfig(
        points=DptConfig((32, 32, 32, 32), (8, 8, 8, 8), 8, 8, 8, 4, VIT.patch),
        local_inputs=64,
        local_hidden=32,
        descriptor_channels=4,
        own_descriptor_confidence=True,
        confidence=ConfidenceMode(1),
        descriptor_confidence=ConfidenceMode(0),
    )
    torch.manual_seed(0)
    decoder = TwoViewDecoder(DecoderConfig(32, 32, 2, 2, 32, 100.0))
    return TwoViewModel(DunePatches(VisionTransformer(VIT)), decoder, head).eval().requires_grad_(False)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, *(VIT.patch * side for side in size), generator=generator) for size in sizes]


def test_the_exported_module_of_a_two_view_model_gives_what_the_model_gives() -> None:
    model = small_model()
    network = network_of("two-view", model)
    assert network.inputs == ("images1", "images2") and network.patch == VIT.patch
    views = images((3, 5), (6, 4))
    expected = model.decode(model.encode(views[0]), model.encode(views[1]))
    found = dict(zip(network.outputs, network.module(*views)))
    assert len(found) == 8
    for name, values in found.items():
        torch.testing.assert_close(values, getattr(expected, name), atol=1e-6, rtol=1e-5)
    assert found["points1"].shape == (2, 42, 70, 3) and found["descriptors2"].shape == (2, 84, 56, 4)


@pytest.mark.skipif("DUNE_TEST_TWO_VIEW_ONNX" not in os.environ, reason="takes a minute of the processor")
def test_a_two_view_file_is_equal_to_torch_at_sizes_it_was_not_traced_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    network = replace(network_of("two-view", small_model()), size_px=4 * VIT.patch)
    onnx_file.save_onnx(onnx_file.export_program(network), network, tmp_path / "two.onnx")
    monkeypatch.setattr(onnx_file, "CHECKED", ((1, 3, 5), (2, 6, 4)))
    session = OnnxSession(tmp_path / "two.onnx")
    compared = onnx_file.compare(network, session)
    assert [(one["batch"], one["height"], one["width"]) for one in compared] == [(1, 42, 70), (2, 84, 56), (1, 56, 56)]
    assert max(one["relative_error"] for one in compared) < 1e-5
    views = images((3, 5), (2, 4))
    assert session.run(*views)["descriptors2"].shape == (2, 28, 56, 4)
