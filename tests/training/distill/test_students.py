"""Students: DUNE's ViTs, dune-mini with its stems, any timm model; their weights, projectors and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import load_file

from dune_cli.checkpoints import weights_folder
from dune_cli.checkpoints.loader import load_encoder
from dune_cli.checkpoints.third_party import ThirdPartyWeights, open_third_party, open_xfeat
from dune_cli.errors import UserError, WeightsMissing
from dune_cli.teachers.registry import load_teacher
from dune_cli.training.common.loop import weight_decay_groups
from dune_cli.training.distill.projectors import PROJECTORS
from dune_cli.training.distill.students import Student, freeze_unused, ladder_levels, new_encoder
from support import kornia_matchers

STUDENTS = ("resnet18", "convnext_atto", "vit_tiny_patch16_224")
needs_lite = pytest.mark.weights("efficientnet-lite2")


def test_students_are_drawn_as_the_recipe_says() -> None:
    student = new_encoder("vit:64x2", 28, 4)
    again, other = new_encoder("vit:64x2", 28, 4), new_encoder("vit:64x2", 28, 5)
    assert torch.equal(student.pos_embed, again.pos_embed) and not torch.equal(student.pos_embed, other.pos_embed)
    assert student.register_tokens.shape == (1, 4, 64) and student.config.position_policy == "offset"
    assert student.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert student.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert student.cls_token.abs().max() < 1e-5 and student.blocks[1].ls2.gamma.unique().item() == pytest.approx(1e-4)
    assert student.blocks[0].attn.qkv.bias.abs().max() == 0
    timm_student = new_encoder("timm:resnet10t", 32, 4)
    state = torch.random.get_rng_state()
    same = new_encoder("timm:resnet10t", 32, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(timm_student.model.conv1[0].weight, same.model.conv1[0].weight)


@pytest.mark.parametrize("projector", sorted(PROJECTORS))
def test_projectors_and_unused_parameters(projector: str) -> None:
    widths = {"a": {"cls": 24, "patch": 24}, "b": {"patch": 10}}
    student = Student(new_encoder("vit:64x4", 28, 0), widths, projector, 0)
    freeze_unused(student, 28)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.norm.weight", "encoder.norm.bias"}
    out = student(torch.rand(2, 3, 28, 28))
    assert {name: {kind: tuple(v.shape) for kind, v in kinds.items()} for name, kinds in out.items()} == {
        "a": {"cls": (2, 24), "patch": (2, 4, 24)},
        "b": {"patch": (2, 4, 10)},
    }
    decayed, free = weight_decay_groups(student, 0.03)
    assert free["weight_decay"] == 0 and all(parameter.ndim <= 1 for parameter in free["params"])
    assert len(decayed["params"]) + len(free["params"]) + 2 == len(list(student.parameters()))
    if projector == "lp":
        assert student.levels == (0, 1, 2, 3) and ladder_levels(12) == (2, 5, 8, 11)


def published() -> ThirdPartyWeights:
    return open_third_party("xfeat", "xfeat")


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
        assert "stem: efficientnet-lite2 (Apache-2.0), xfeat (Apache-2.0)" in file.metadata()["dune.licence"]


@pytest.mark.parametrize("name", STUDENTS)
def test_plain_timm_loads_the_file(name: str, distill, teachers: str, photos: Path, tmp_path: Path) -> None:
    two = ",".join(teachers.split(",")[:2])
    arguments = ("--student", f"timm:{name}", "--size", 64, "--batch-size", 2, "--steps", 2, "--projector", "sp")
    result = distill(two, photos, tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    file = tmp_path / "run" / "student.safetensors"
    loaded = timm.create_model(name, checkpoint_path=str(file)).state_dict()
    written = load_file(file)
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[key], written[key]) for key in written)
    fresh = new_encoder(f"timm:{name}", 64, 0).model.state_dict()
    moved = [key for key in written if written[key].is_floating_point() and not torch.equal(written[key], fresh[key])]
    assert len(moved) > 0.5 * len(written)
    half = timm.create_model(name, checkpoint_path=str(file.with_name("student_fp16.safetensors"))).state_dict()
    for key in written:
        torch.testing.assert_close(half[key], written[key], atol=1e-3, rtol=1e-3, msg=key)

    # the file is a teacher, and a start, too
    tokens = load_teacher(f"timm:{name}={file}", torch.device("cpu"))(torch.rand(1, 3, 64, 64), (4, 4))
    assert tokens["patch"].shape[:2] == (1, 16)
    again = distill(two, photos, tmp_path / "two", *arguments, "--init", file, "--steps", 1, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["config"]["init"] == str(file)


@pytest.mark.parametrize(
    ("name", "patch", "width"),
    [
        ("resnet18", 16, 512),
        ("convnext_atto", 16, 320),
        ("vit_tiny_patch16_224", 16, 192),
        ("swin_s3_tiny_224", 16, 768),
    ],
)
def test_features_on_the_common_grid(name: str, patch: int, width: int) -> None:
    encoder = new_encoder(f"timm:{name}", 64, 0).eval()
    images = torch.rand(2, 3, 64, 96)
    if name.startswith("swin"):
        images = images[..., :64]
    with torch.inference_mode():
        tokens = encoder.intermediate(images, (-1,))[0]
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    assert (encoder.patch, encoder.width, tokens.grid) == (patch, width, grid)
    assert tokens.patches.shape == (2, grid[0] * grid[1], width) and tokens.cls.shape == (2, width)
    if name == "resnet18":  # stride 32, enlarged: the mean stays
        mean, std = (torch.tensor(encoder.model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.inference_mode():
            features = encoder.model.forward_features((images - mean) / std)
        assert features.shape[-2:] == (2, 3)
        torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))
        torch.testing.assert_close(tokens.patches[:, 0], features[:, :, 0, 0], atol=1e-5, rtol=1e-5)


def test_the_classifier_stays_out_of_training() -> None:
    student = Student(new_encoder("timm:resnet10t", 32, 0), {"a": {"cls": 8, "patch": 8}}, "sp", 0)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    freeze_unused(student, 32)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.model.fc.weight", "encoder.model.fc.bias"}
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())  # batch norms, too
