"""FastDepth and MOSAIC: laws on random weights, and parity with the published files' runtime where it is installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dune_cli.models.fastdepth import FastDepth
from dune_cli.models.mosaic import CLASSES, Mosaic, SameConv2d, enlarge

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = Path(os.environ.get("DUNE_SHARED", ROOT.parent / "shared")) / "networks"


@pytest.mark.parametrize(("network", "count"), [(FastDepth, 1_352_225), (Mosaic, 1_862_176)])
def test_sizes(network: type[nn.Module], count: int) -> None:
    net = network()
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    convolutions = net.convolutions()
    assert {id(c) for c in convolutions} == {id(c) for c in net.modules() if isinstance(c, nn.Conv2d)}
    with pytest.raises(ValueError, match="multiples of"):
        net(torch.zeros(1, 3, 224, 100))


@torch.inference_mode()
def test_outputs_lie_where_the_docstrings_say() -> None:
    torch.manual_seed(0)
    depth = FastDepth()(torch.rand(2, 3, 64, 96))
    assert (
        depth.depth.shape == (2, 64, 96) and depth.features.shape == (2, 16, 32, 48) and bool((depth.depth >= 0).all())
    )
    found = Mosaic()(torch.rand(1, 3, 128, 256))
    assert found.logits.shape == (1, len(CLASSES), 32, 64) and found.features.shape == (1, 128, 8, 16)


def test_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    layer = SameConv2d(1, 1, 3, 2)
    nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    row = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 1, 4)
    assert layer(row).flatten().tolist() == [6, 7]


def test_enlarging_samples_from_the_corner() -> None:
    row = torch.tensor([0.0, 4]).view(1, 1, 1, 2)
    assert enlarge(row, 2)[0, 0].tolist() == [[0, 2, 4, 4]] * 2


def _photos(folder: Path, side: int) -> list[np.ndarray]:
    """(side, side, 3) uint8 each."""
    names = ("astronaut.png", "coffee.png", "motorcycle_left.png")
    return [np.array(Image.open(folder / n).convert("RGB").resize((side, side), Image.BILINEAR)) for n in names]


@pytest.mark.skipif(not (NETWORKS / "fast_depth_224.tflite").is_file(), reason="needs the shared networks folder")
@torch.inference_mode()
def test_fastdepth_equals_the_published_files_runtime(example_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 activations of the published file move its depth by up to 0.05 m in the mean."""
    runtime = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the package ai-edge-litert")
    monkeypatch.syspath_prepend(str(ROOT / "weights" / "build"))
    from bake_open_networks import load_published

    path = NETWORKS / "fast_depth_224.tflite"
    reference, net = runtime.Interpreter(model_path=str(path), num_threads=1), load_published("fastdepth", path)
    reference.allocate_tensors()
    (given,), (output,) = reference.get_input_details(), reference.get_output_details()
    for photo in _photos(example_photos, 224):
        reference.set_tensor(given["index"], photo[None])
        reference.invoke()
        scale, zero = output["quantization"]
        expected = (reference.get_tensor(output["index"])[0, ..., 0].astype(np.float32) - zero) * scale
        depth = net(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255).depth[0].numpy()
        assert np.abs(depth - expected).mean() < 0.06 and np.corrcoef(depth.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.skipif(not NETWORKS.is_dir(), reason="needs the shared networks folder")
@torch.inference_mode()
def test_the_published_weights_give_the_scores_that_their_card_states(
    example_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dequantised weights: the astronaut is a person, the motorcycle stands in a room some metres deep."""
    monkeypatch.syspath_prepend(str(ROOT / "weights" / "build"))
    from bake_open_networks import load_published

    mosaic = load_published("mosaic", NETWORKS / "mobile_segmenter_r3_quant.tflite")
    astronaut, _, _ = _photos(example_photos, 512)
    logits = mosaic(torch.from_numpy(astronaut).permute(2, 0, 1)[None] / 255).logits[0]
    assert CLASSES[int(logits.argmax(0)[40:100, 30:80].flatten().mode().values)] == "person"
    fastdepth = load_published("fastdepth", NETWORKS / "fast_depth_224.tflite")
    depth = fastdepth(torch.from_numpy(_photos(example_photos, 224)[2]).permute(2, 0, 1)[None] / 255).depth
    assert 1 < float(depth.median()) < 6
