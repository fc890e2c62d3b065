"""dune-mini as a student: its stems, their open weights, and the file that comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors import safe_open

from dune_cli.checkpoints import weights_folder
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.checkpoints.third_party import ThirdPartyWeights, open_third_party, open_xfeat
from dune_cli.errors import UserError, WeightsMissing
from dune_cli.training.distill.students import new_encoder
from support import kornia_matchers


def published() -> ThirdPartyWeights:
    return open_third_party("xfeat", "xfeat")


needs_lite = pytest.mark.weights("efficientnet-lite2")


def test_unknown_stems_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown stem resnet; known, joined by \+: conv, xfeat, lite"):
        new_encoder("dune-mini:xfeat+resnet", 64, 0)


def test_a_missing_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise WeightsMissing(f"{name} is not here")

    monkeypatch.setattr(weights_folder, "locate", missing)
    with pytest.raises(WeightsMissing, match="efficientnet-lite2 is not here"):
        new_encoder("dune-mini:lite", 64, 0)
    assert new_encoder("dune-mini:lite", 64, 0, open_weights=False).open_stem == {}


@pytest.mark.parametrize("open_weights", [open_xfeat, pytest.param(published, marks=pytest.mark.weights("xfeat"))])
def test_the_xfeat_stem_is_the_published_network(open_weights: Callable[[], ThirdPartyWeights]) -> None:
    encoder = new_encoder("dune-mini:xfeat", 64, 0).eval()
    network = kornia_matchers.xfeat_network(open_weights())
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(encoder.pyramid(images).maps["xfeat"][8], network(images)[0])


@needs_lite
def test_the_lite_stem_is_the_teachers_network() -> None:
    from dune_cli.teachers.registry import load_teacher

    encoder = new_encoder("dune-mini:lite", 64, 0).eval()
    teacher = load_teacher("efficientnet-lite2", torch.device("cpu"), torch.float32)
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = encoder.pyramid(images).maps["lite"]
        for own, theirs in zip(maps.values(), teacher.net((images - 0.5) / 0.5)):
            assert torch.allclose(own, theirs, atol=1e-4)


@needs_lite
@pytest.mark.slow
def test_a_student_with_open_stems_is_distilled_and_read_again(distill, photos: Path, tmp_path: Path) -> None:
    result: Result = distill(
        "xfeat", photos, tmp_path / "o", "--student", "dune-mini:xfeat+lite", "--size", 64, "--steps", 2,
        "--batch-size", 2, "--held-out", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    fresh = new_encoder("dune-mini:xfeat+lite", 64, 0)
    encoder = load_encoder(tmp_path / "o" / "student.safetensors")
    assert encoder.vit.config == fresh.config
    for key, value in fresh.stem.state_dict().items():
        assert torch.equal(encoder.vit.stem.state_dict()[key].to(value.dtype), value), key
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert not torch.equal(encoder(images).patches, fresh.eval()(images).patches)
        assert encoder.project(images, "xfeat").patches.shape == (1, 16, 256)
    with safe_open(tmp_path / "o" / "student.safetensors", "pt") as file:
        assert 'stem: {"efficientnet-lite2": "Apache-2.0", "xfeat": "Apache-2.0"}' in file.metadata()["dune.licence"]
