"""`dune encode`: what it writes and prints, and the sentences for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dune_cli import load_encoder
from dune_cli.provenance import sha256_of
from support.published_files import dune_manifest, make_state_dict, mast3r_manifest, mast3r_tree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save({"model": make_state_dict(dune_manifest(128, 2, 6, {"one": 48}), 4)}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index, size in enumerate([(98, 70), (70, 98), (98, 70)]):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"img{index}.png")
    return tmp_path / "photos"


def test_one_photo_to_npz(dune: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "features.npz"
    photo = folder / "img0.png"
    command = ("encode", photo, "--model", model, "-o", target, "--size", 98, "--dtype", "float32")
    done = dune(*command)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert "licence of the weights: unknown" in done.stderr
    arrays = np.load(target)
    assert {name: arrays[name].shape for name in arrays} == {
        "cls": (128,),
        "registers": (4, 128),
        "patches": (5, 7, 128),
    }
    pixels = torch.from_numpy(np.asarray(Image.open(photo), np.float32) / 255).permute(2, 0, 1)[None]
    tokens = load_encoder(model, device="cpu")(pixels)
    np.testing.assert_allclose(arrays["patches"], tokens.map()[0], atol=1e-5)
    facts = json.loads(target.with_suffix(".json").read_text())
    assert facts["schema"] == "dune.features/1"
    assert (facts["grid"], facts["channels"], facts["teacher"]) == ([5, 7], 128, None)
    assert facts["provenance"]["models"][0]["sha256"] == sha256_of(model)
    assert facts["provenance"]["inputs"] == [{"path": str(photo), "sha256": sha256_of(photo)}]
    again = dune(*command)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert dune(*command, "--overwrite").returncode == 0


def test_a_folder_to_pictures_and_json(dune: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pca"
    done = dune("encode", folder, folder / "img1.png", "--model", model, "--format", "png", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    documents = json.loads(done.stdout)
    assert [d["file"] for d in documents] == ["img0.png", "img1.png", "img2.png", "img1_2.png"]
    assert Image.open(out / "img1.png").size == (documents[1]["image"]["width"], documents[1]["image"]["height"])
    assert sorted(p.suffix for p in out.iterdir()) == [".json"] * 4 + [".png"] * 4


def test_a_teacher_by_name(dune: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    photo = folder / "img0.png"
    done = dune("encode", photo, "--model", model, "--teacher", "one", "-o", tmp_path / "t.npz", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(tmp_path / "t.npz")["patches"].shape[-1] == 48
    done = dune("encode", photo, "--model", model, "--teacher", "two", "-o", tmp_path / "u.npz")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "dune: small.pth predicts no teacher 'two'; allowed: one"
    assert not (tmp_path / "u.npz").exists()


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["{photo}", "--model", "dune-vitb14-448", "-o", "{out}/f.npz"], 3, "dune weights pull dune-vitb14-448"),
        (["{photo}", "--model", "dune-vitb14-44", "-o", "{out}/f.npz"], 2, "did you mean"),
        (["{photo}", "--model", "{model}", "-o", "{out}/f.txt"], 2, "allowed: .npz .png, or a folder"),
        (["{folder}", "--model", "{model}", "-o", "{out}/f.npz"], 2, "3 photos do not fit into one file"),
        (["{photo}", "--model", "{model}", "--format", "npz", "-o", "{out}/f.png"], 2, "contradicts"),
        (["{out}/none.jpg", "--model", "{model}", "-o", "{out}/f.npz"], 2, "no such file"),
        (["{photo}", "--model", "{decoder}", "-o", "{out}/f.npz"], 2, "it holds a MASt3R model"),
        (["{photo}", "--model", "timm:resnet18", "-o", "{out}/f.npz"], 2, "resnet18"),
        (["{photo}", "--model", "timm:vit_tiny_patch16_224", "-o", "{out}/f.npz"], 3, "Hugging Face cache"),
    ],
)
def test_mistakes_are_one_sentence(
    dune: Any, model: Path, folder: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    decoder = tmp_path / "decoder.pth"
    if "{decoder}" in arguments:
        text = json.loads((Path(__file__).parents[1] / "parity" / "mast3r_mini.json").read_text())["model"]
        torch.save(mast3r_tree(text, make_state_dict(mast3r_manifest(), 1)), decoder)
    names = {"photo": folder / "img0.png", "folder": folder, "out": tmp_path, "model": model, "decoder": decoder}
    done = dune("encode", *(argument.format(**names) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "f.npz").exists()
