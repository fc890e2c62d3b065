"""`dune export` and `--runtime`: what they write, and the sentences for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli import load_encoder, optional
from dune_cli.errors import PackageMissing
from dune_cli.provenance import sha256_of
from support.published_files import dune_manifest, make_state_dict
from support.small_encoders import write_small_mini


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save({"model": make_state_dict(dune_manifest(64, 1, 6, {"one": 48}), 4)}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 98, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"img{index}.png")
    return folder


@pytest.mark.slow
def test_int8_file_its_facts_and_encoding_on_it(dune: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnx

    target = tmp_path / "new" / "small.onnx"
    done = dune("export", "encoder", "--model", model, "--int8", photos, "--size", 98, "-o", target)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert "licence of the weights: unknown" in done.stderr
    facts = json.loads(target.with_suffix(".json").read_text())
    assert facts["schema"] == "dune.export/1"
    assert (facts["kind"], facts["precision"], facts["opset"], facts["patch"]) == ("encoder", "int8", 20, 14)
    assert len(facts["compared"]) == 5
    assert max(one["relative_error"] for one in facts["compared"]) < 1e-5
    assert facts["int8"].items() >= {"calibration_photos": 2, "measured_photos": 1, "held_out": True}.items()
    assert facts["int8"]["layers"] == 5  # patches, qkv, projection, two of the MLP
    assert facts["int8"]["cosine"]["patches"]["mean"] > 0.99
    assert set(facts["speed"]["seconds"]) == {"torch float32", "onnx float32", "onnx int8"}
    assert facts["provenance"]["models"][0]["sha256"] == sha256_of(model)

    file = onnx.load_model(target)
    inside = {entry.key: entry.value for entry in file.metadata_props}
    assert inside["dune.precision"] == "int8"
    assert json.loads(inside["dune.sources"])[0] == {
        "name": "small.pth",
        "sha256": sha256_of(model),
        "licence": "unknown",
    }
    assert json.loads(inside["dune.mean"]) == [0.485, 0.456, 0.406]
    assert [value.name for value in file.graph.output] == ["cls", "registers", "patches"]
    axes = [axis.dim_param or axis.dim_value for axis in file.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "14*rows", "14*columns"]
    assert str(Path(__file__).parents[2]).encode() not in target.read_bytes()

    command = ("encode", photos / "img1.png", "--model", model, "--size", 84)
    done = dune(*command, "--runtime", target, "-o", tmp_path / "onnx.npz")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "onnx.json").read_text())["provenance"]
    assert (said["dtype"], said["runtime"]["name"], said["runtime"]["file"]) == ("int8", "onnxruntime", "small.onnx")
    assert said["runtime"]["sha256"] == sha256_of(target)
    assert dune(*command, "-o", tmp_path / "torch.npz").returncode == 0
    found, expected = (np.load(tmp_path / f"{name}.npz")["patches"].ravel() for name in ("onnx", "torch"))
    assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.99

    done = dune("encode", photos / "img1.png", "--runtime", target, "-o", tmp_path / "other.npz")
    assert done.returncode == 2
    assert "holds the encoder of small.pth" in done.stderr
    done = dune(*command, "--runtime", target, "--dtype", "bfloat16", "-o", tmp_path / "other.npz")
    assert done.returncode == 2
    assert "leave --device auto and --dtype bfloat16 out" in done.stderr


def test_torch_export_of_dune_mini_has_open_sizes(dune: Any, tmp_path: Path) -> None:
    model, target = write_small_mini(tmp_path / "mini.safetensors"), tmp_path / "mini.pt2"
    done = dune("export", "encoder", "--model", model, "-o", target, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_px"] == 448
    extra = {"dune.json": ""}
    program = torch.export.load(target, extra_files=extra).module()
    assert json.loads(extra["dune.json"])["sources"][0]["sha256"] == sha256_of(model)
    images = torch.rand(1, 3, 48, 112)
    tokens = load_encoder(model, device="cpu")(images)
    for found, expected in zip(program(images), (tokens.cls, tokens.registers, tokens.map())):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_mistakes_are_one_sentence(dune: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, empty = write_small_mini(tmp_path / "mini.safetensors"), tmp_path / "empty"
    empty.mkdir()
    onnx, program = tmp_path / "x.onnx", tmp_path / "x.pt2"
    for words, code, sentence in (
        (("encoder", "-o", tmp_path / "x.tflite"), 2, "has the ending .tflite; allowed: .onnx .pt2"),
        (("encoder", "--int8", photos, "-o", program), 2, "--int8 is written as .onnx"),
        (("encoder", "--int8", empty, "-o", onnx), 2, "holds no images"),
        (
            ("encoder", "--model", model, "--size", 450, "-o", program),
            2,
            "no multiple of the patch of mini.safetensors, 16 px",
        ),
        (("encoder", "--model", "timm:vit_tiny_patch16_224", "-o", program), 2, "cannot be exported"),
        (("encoder", "--model", "dune-depth", "-o", program), 2, "not an encoder model"),
        (("two-view", "-o", program), 2, "no two-view model comes with dune"),
        (("human", "-o", program), 2, "'human' is not one of"),
    ):
        done = dune("export", *words)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    done = dune("encode", photos, "--runtime", "tensorrt", "-o", tmp_path / "features")
    assert done.returncode == 2
    assert "give torch, onnx or a file" in done.stderr

    def missing(module: str, why: str, extra: str | None = None) -> None:
        raise PackageMissing(f"{why} needs the package {module}; run: pip install 'dune-cli[{extra}]'")

    monkeypatch.setattr(optional, "require", missing)
    done = dune("export", "encoder", "--model", model, "-o", onnx)
    assert done.returncode == 4
    assert "pip install 'dune-cli[export]'" in done.stderr
