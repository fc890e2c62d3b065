"""timm's ViTs as encoders, from files and from the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dune_cli import load_encoder
from dune_cli.checkpoints.weight_files import write_safetensors
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from support.published_files import make_image

timm = pytest.importorskip("timm")
TINY = "vit_tiny_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"


def random_network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()


def test_a_timm_vit_from_a_file_gives_timms_tokens(tmp_path: Path) -> None:
    network = random_network(TINY)
    classifier = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    torch.save(network.state_dict() | classifier, tmp_path / "tiny.pth")
    encoder = load_encoder(f"timm:{TINY}={tmp_path / 'tiny.pth'}", device="cpu")
    assert (encoder.patch, encoder.width, encoder.teachers, encoder.native_size_px) == (16, 192, (), 224)
    assert encoder.source.name == f"timm:{TINY}"
    image = make_image([2, 3, 96, 160], 1)
    with torch.no_grad():
        expected = network.forward_features((image - 0.5) / 0.5)  # this network's own normalisation
    tokens = encoder(image)
    assert tokens.grid == (6, 10)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.cls, expected[:, 0], atol=1e-5, rtol=0)
    plain = encoder(image, norm=False)
    torch.testing.assert_close(network.norm(plain.patches), tokens.patches, atol=1e-5, rtol=0)
    rough = load_encoder(f"timm:{TINY}={tmp_path / 'tiny.pth'}", device="cpu", dtype="bfloat16")(image)
    assert rough.patches.dtype == torch.float32
    assert 1e-5 < (rough.patches - tokens.patches).norm() / tokens.patches.norm() < 0.02


def test_registers_and_networks_without_cls(tmp_path: Path) -> None:
    torch.save(random_network(REGISTERS).state_dict(), tmp_path / "reg.pth")
    tokens = load_encoder(f"timm:{REGISTERS}={tmp_path / 'reg.pth'}", device="cpu")(make_image([1, 3, 28, 42], 1))
    assert tokens.registers.shape == (1, 4, 384)
    assert tokens.grid == (2, 3)
    name = "vit_base_patch16_siglip_224"
    torch.save(random_network(name).state_dict(), tmp_path / "siglip.pth")
    tokens = load_encoder(f"timm:{name}={tmp_path / 'siglip.pth'}", device="cpu")(make_image([1, 3, 32, 48], 1))
    assert tokens.registers.shape[1] == 0
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))


def test_the_hugging_face_cache_is_used_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "model.safetensors"
    write_safetensors(cached, random_network(TINY).state_dict(), {})
    asked = []

    def cache(repository: str, filename: str) -> str | None:
        asked.append((repository, filename))
        return str(cached) if filename == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    encoder = load_encoder(f"timm:{TINY}", device="cpu")
    assert encoder.width == 192
    assert encoder.source.licence != "unknown"
    assert asked[0][0].startswith("timm/vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "spec, error, said",
    [
        (f"timm:{TINY}", WeightsMissing, "hf download timm/"),
        ("timm:vit_tiny_patch16_22", UserError, "near: vit_tiny_patch16_224"),
        ("timm:resnet18", UserError, "resnet18"),
        ("timm:", UserError, "no network ''"),
        (f"timm:{TINY}=/nowhere.pth", CheckpointError, "no such file"),
    ],
)
def test_what_cannot_be_loaded(spec: str, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(error, match=said):
        load_encoder(spec, device="cpu")


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    torch.save(random_network(REGISTERS).state_dict(), tmp_path / "reg.pth")
    with pytest.raises(CheckpointError, match=r"reg\.pth: the file does not fit this network"):
        load_encoder(f"timm:{TINY}={tmp_path / 'reg.pth'}", device="cpu")
    torch.save({"head.weight": torch.zeros(3)}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=rf"empty\.pth: the file does not fit timm's {TINY}: .* keys missing"):
        load_encoder(f"timm:{TINY}={tmp_path / 'empty.pth'}", device="cpu")
