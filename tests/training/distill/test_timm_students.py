"""Any timm model as a student: what is written, plain timm loads unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from dune_cli.teachers.registry import load_teacher
from dune_cli.training.distill.students import Student, freeze_unused, new_encoder

STUDENTS = ("resnet18", "convnext_atto", "vit_tiny_patch16_224")


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
