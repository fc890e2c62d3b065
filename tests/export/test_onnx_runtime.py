"""Models on a session give what they give by torch. The session is torch itself: a file is in tests/commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dune_cli.errors import JobFailed, UserError
from dune_cli.export import measured, onnx_file
from dune_cli.export.networks import ExportNetwork, network_of
from dune_cli.export.onnx_runtime import OnnxEncoder, kept_path, on_onnx, session_model
from dune_cli.models.da3_backbone import Da3Backbone, Da3BackboneConfig
from dune_cli.models.da3_cameras import CameraDecoder
from dune_cli.models.da3_heads import Da3Head, Da3HeadConfig
from dune_cli.models.depth_anything3 import MonocularDepth, MultiViewDepth, MultiViewNetwork
from dune_cli.models.dinov2_heads import (
    HeadDepth,
    LinearDepthHead,
    LinearSegmentationHead,
    SegmentationProtocol,
    Segmenter,
)
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.heads import FeatureHeadConfig, HeadCard, HeadedEncoder, build_head, measure
from dune_cli.models.mast3r import TwoViewDepth
from dune_cli.models.vit import VisionTransformer, VitConfig
from dune_cli.provenance import Run

VIT = VitConfig(
    width=64, depth=4, heads=2, hidden=64, patch=14, registers=2, positions_side=4, position_policy="offset"
)


class TorchSession:
    """The exported module itself behind the calls of an OnnxSession."""

    def __init__(self, network: ExportNetwork) -> None:
        self.network, self.outputs = network, list(network.outputs)

    def run(self, *images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.outputs, self.network.module(*images)))


def _seeded(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for part in model.parameters():
        nn.init.normal_(part, std=0.1)
    return model.eval().requires_grad_(False)


def _headed(task: str, outputs: int) -> HeadedEncoder:
    config = MiniConfig(width=64, depth=1, heads=1, hidden=64, conv=(8, 16, 16), conv_blocks=(1, 1))
    encoder = MiniEncoder(config).eval().requires_grad_(False)
    features = measure(encoder, ("tokens0", "conv8"))
    head = build_head(FeatureHeadConfig(task, "dpt", features, outputs, widths=(8, 8, 8)))
    return HeadedEncoder(encoder, head, HeadCard("mini", "0" * 64, 448, "none"))


def _depth_anything(metric: bool) -> nn.Module:
    layers, vit = (0, 1, 2, 3), replace(VIT, registers=0)
    if metric:
        backbone = Da3Backbone(Da3BackboneConfig(vit, layers, None, None, None))
        return MonocularDepth(backbone, Da3Head(Da3HeadConfig(64, (8, 8, 8, 8), 8, dual=False), 14), metric=True)
    backbone = Da3Backbone(Da3BackboneConfig(vit, layers, 2, 2, 2))
    head = Da3Head(Da3HeadConfig(128, (8, 8, 8, 8), 8, dual=True), 14)
    return MultiViewDepth(MultiViewNetwork(backbone, head, None, CameraDecoder(128)))


def _on_session(model: nn.Module, kind: str) -> Any:
    return session_model(model, TorchSession(network_of(kind, model)))


def test_encoder() -> None:
    model = _seeded(VisionTransformer(VIT))
    found, images = _on_session(model, "encoder"), torch.rand(2, 3, 28, 42)
    assert isinstance(found, OnnxEncoder)
    ours, theirs = found(images), model(images)
    for name in ("cls", "registers", "patches"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert (ours.grid, found.native_size_px, found.teachers) == ((2, 3), 56, ())
    with pytest.raises(ValueError, match="28x30"):
        found(torch.rand(1, 3, 28, 30))


def test_heads_of_dune_train() -> None:
    depth, scene = _seeded(_headed("depth", 1)), _seeded(_headed("segmentation", 3))
    scene.encoder = depth.encoder
    depth.scene = scene
    images = torch.rand(1, 3, 48, 64)
    found = _on_session(depth, "depth")
    for ours, theirs in zip(found.with_scene(images), depth.with_scene(images)):
        torch.testing.assert_close(ours, theirs)
    assert found.input_size(300, 400) == depth.input_size(300, 400)
    assert found.scene is scene
    torch.testing.assert_close(_on_session(scene, "segment")(images), scene(images))


def test_dinov2_heads_take_any_sides() -> None:
    images = torch.rand(1, 3, 30, 45)
    depth = _seeded(HeadDepth(VisionTransformer(VIT), LinearDepthHead(64, 1, 16, 0.001, 10.0), (3,), 0.001, 10.0))
    torch.testing.assert_close(_on_session(depth, "depth")(images, flip=True), depth(images, flip=True))
    protocol = SegmentationProtocol(56, 28, (56,), None, False)
    segmenter = _seeded(Segmenter(VisionTransformer(VIT), LinearSegmentationHead(64, 1, 5), (3,), protocol))
    torch.testing.assert_close(_on_session(segmenter, "segment").slide(images), segmenter.slide(images))


def test_depth_anything() -> None:
    images = torch.rand(1, 3, 42, 56)
    metric = _seeded(_depth_anything(True))
    torch.testing.assert_close(_on_session(metric, "depth")(images), metric(images))
    views = _seeded(_depth_anything(False))
    found = _on_session(views, "depth")
    ours, theirs = found.network(images), views.network(images)
    for name in ("depth", "confidence", "K"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(found(images, flip=True), views(images, flip=True))
    with pytest.raises(ValueError, match="single images"):
        found.network(torch.cat([images, images]))


def test_a_two_view_model_is_no_depth_model() -> None:
    with pytest.raises(UserError, match="export it as two-view"):
        network_of("depth", TwoViewDepth.__new__(TwoViewDepth))


def test_photos_of_the_cosine_are_kept_from_the_calibration() -> None:
    photos = [measured.Path(f"{number}.jpg") for number in range(100)]
    split = measured.split(photos)
    assert (len(split.calibration), len(split.measured), split.held_out) == (16, 8, True)
    assert measured.split(photos[:1]) == measured.PhotoSplit(photos[:1], photos[:1])
    assert not measured.split(photos[:1]).held_out


def test_a_kept_file_that_does_not_open_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("DUNE_WEIGHTS", str(tmp_path))
    model = _seeded(VisionTransformer(VIT))
    kept = kept_path(network_of("encoder", model))
    assert kept.is_relative_to(tmp_path)
    kept.parent.mkdir()
    kept.write_bytes(b"no ONNX file")
    made = []

    def save(program: object, network: ExportNetwork, path: Path) -> None:
        made.append(path)
        raise JobFailed("made")

    monkeypatch.setattr(onnx_file, "export_program", lambda network: None)
    monkeypatch.setattr(onnx_file, "save_onnx", save)
    with pytest.raises(JobFailed, match="made"):
        on_onnx(model, "encoder", "onnx", Run())
    assert len(made) == 1
