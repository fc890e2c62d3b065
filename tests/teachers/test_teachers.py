"""Teachers: on the student's grid whatever their own patch or stride; open weights where they are present.

docs/models/encoder.md, "Teachers".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from dune_cli.checkpoints import third_party, weights_folder
from dune_cli.checkpoints.loader import load_encoder, load_two_view
from dune_cli.checkpoints.third_party import ThirdPartyWeights, open_third_party, open_xfeat
from dune_cli.errors import UserError
from dune_cli.models.patch_embed import resample
from dune_cli.teachers.registry import load_teacher, names
from dune_cli.teachers.teacher import as_tokens, fold_map, resample_map, resize_to_grid
from support import kornia_matchers
from support.published_files import deviation, dinov2_manifest, dune_manifest, dune_tree, make_image, make_state_dict
from support.teacher_files import write_teachers

CPU = torch.device("cpu")


def published_xfeat() -> ThirdPartyWeights:
    return open_third_party("xfeat", "xfeat")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Teacher -> `NAME=FILE`."""
    return {text.partition("=")[0]: text for text in write_teachers(tmp_path_factory.mktemp("files")).split(",")}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two images of 4 x 5 student patches of 14 px."""
    return make_image([2, 3, 56, 70], 5)


def test_the_image_is_resized_to_the_teachers_grid_with_its_corners_kept(images: torch.Tensor) -> None:
    seen = resize_to_grid(images, (4, 5), 16)
    assert seen.shape[-2:] == (64, 80)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # align_corners=True
        torch.testing.assert_close(seen[:, :, y, x], images[:, :, y, x], atol=1e-6, rtol=0)
    # bicubic (a = -0.75), no antialiasing: at the middle of a row, worked out by hand
    row = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]).expand(1, 3, 6, 6)
    fine = resize_to_grid(row, (11, 11), 1)
    assert fine[0, 0, 0, 3].item() == pytest.approx(0.59375, abs=1e-6)  # half a pixel from the 1
    assert fine[0, 0, 0, 5].item() == pytest.approx(-0.09375, abs=1e-6)  # a pixel and a half from it
    assert resize_to_grid(images, (4, 5), 14) is images


def test_mast3r_sees_sixteen_pixels_where_the_student_sees_fourteen(
    files: dict[str, str], images: torch.Tensor
) -> None:
    teacher = load_teacher(files["mast3r"], CPU)
    model = load_two_view(files["mast3r"].partition("=")[2], device="cpu")
    with torch.inference_mode():
        expected, grid = model.encoder(
            F.interpolate(images, size=(64, 80), mode="bicubic", align_corners=True, antialias=False)
        )
    found = teacher(images, (4, 5))
    assert grid == (4, 5) and set(found) == {"patch"}
    assert deviation(found["patch"], expected.numpy()) == 0
    assert not torch.equal(found["patch"], model.encoder.norm(found["patch"]))  # enc_norm is inside, once


@pytest.mark.parametrize("name", ["dinov2", "multihmr"])
def test_dinov2_shaped_teachers_resample_positions_with_the_offset(
    name: str, files: dict[str, str], images: torch.Tensor
) -> None:
    teacher = load_teacher(files[name], CPU)
    vit = teacher.encoder
    found = teacher(images, (4, 5))
    with torch.inference_mode():
        positions = resample(vit.pos_embed, (4, 5), "offset")
        torch.testing.assert_close(vit._positions_of((4, 5)), positions)
        tokens = vit(images, norm=True)
    assert set(found) == ({"cls", "patch"} if name == "dinov2" else {"patch"})
    torch.testing.assert_close(found["patch"], tokens.patches)
    if name == "dinov2":
        torch.testing.assert_close(found["cls"], tokens.cls)
        hub = load_encoder(files[name].partition("=")[2], device="cpu")(images)
        assert (hub.patches - found["patch"]).abs().max() > 1e-3  # the hub's own policy is another one


def test_dune_as_a_teacher(images: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "dune.pth"
    torch.save(dune_tree(make_state_dict(dune_manifest(64, 2, 4, {"dinov2": 32}), 3)), file)
    found = load_teacher(f"dune={file}", CPU)(images, (4, 5))
    expected = load_encoder(file, device="cpu")(images)
    torch.testing.assert_close(found["patch"], expected.patches)
    torch.testing.assert_close(found["cls"], expected.cls)


def test_teachers_are_frozen_and_in_float32(files: dict[str, str], images: torch.Tensor) -> None:
    teacher = load_teacher(files["dinov2"], CPU, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
    exact = load_teacher(files["dinov2"], CPU)(images, (4, 5))["patch"]
    found = teacher(images, (4, 5))["patch"]
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert F.cosine_similarity(found, exact, dim=-1).min() > 0.99


def test_names_and_hints() -> None:
    assert {"aliked", "dinov2", "dune", "efficientnet-lite2", "mast3r", "multihmr", "timm", "xfeat"} <= set(names())
    with pytest.raises(UserError, match="did you mean multihmr"):
        load_teacher("multihmir", CPU)


def test_maps_on_the_students_grid() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    torch.testing.assert_close(resample_map(ramp, (2, 4))[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    torch.testing.assert_close(resample_map(ramp, (4, 16))[0, 0, 0, 1:3], torch.tensor([0.25, 0.75]))
    assert resample_map(ramp, (4, 8)) is ramp
    folded = fold_map(torch.rand(1, 3, 4, 6), (2, 3))
    assert folded is not None and folded.shape == (1, 12, 2, 3)
    assert fold_map(torch.rand(1, 3, 4, 6), (3, 3)) is None


@pytest.mark.parametrize(
    ("name", "width", "kinds"),
    [
        ("resnet10t", 512, {"cls", "patch"}),
        ("convnext_atto", 320, {"cls", "patch"}),
        ("vit_tiny_patch16_224", 192, {"cls", "patch"}),
    ],
)
def test_timm_teachers(name: str, width: int, kinds: set[str], images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    teacher = load_teacher(f"timm:{name}={tmp_path / 'weights.pth'}", CPU)
    assert teacher.name == f"timm_{name}"
    found = teacher(images, (4, 5))
    assert {kind: value.shape for kind, value in found.items()} == {"cls": (2, width), "patch": (2, 20, width)}
    if name != "vit_tiny_patch16_224":
        assert "pooled" in teacher.note
        mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.inference_mode():
            features = network.forward_features((resize_to_grid(images, (4, 5), 16) - mean) / std)
        torch.testing.assert_close(found["cls"], features.mean((2, 3)))


def published_lite2(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict in the published names, all of them, with made-up values."""
    torch.manual_seed(seed)
    network = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    flat = [(s, b) for s, stage in enumerate(network.blocks) for b in range(len(stage))]
    top = {new: old for old, new in third_party._TOP.items()}
    state = {}
    for key, value in network.state_dict().items():
        parts = key.split(".")
        if parts[0] != "blocks":
            state[".".join([top[parts[0]], *parts[1:]])] = value
            continue
        stage, block = int(parts[1]), int(parts[2])
        expanded = hasattr(network.blocks[stage][block], "conv_pwl")
        words = {new: old for old, new in (third_party._EXPANDED if expanded else third_party._FIRST).items()}
        state[f"_blocks.{flat.index((stage, block))}.{words[parts[3]]}.{parts[4]}"] = value
    return state


def test_lite2_reads_the_published_names(images: torch.Tensor, tmp_path: Path) -> None:
    torch.save(published_lite2(), tmp_path / "lite2.pth")
    teacher = load_teacher(f"efficientnet-lite2={tmp_path / 'lite2.pth'}", CPU)
    found = teacher(images, (4, 5))
    assert {kind: tuple(value.shape) for kind, value in found.items()} == {"cls": (2, 472), "patch": (2, 20, 472)}
    torch.testing.assert_close(found["cls"], found["patch"].mean(1))
    norms = found["patch"][..., :120].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    with torch.inference_mode():
        stride32 = network.blocks(network.bn1(network.conv_stem((resize_to_grid(images, (4, 5), 16) - 0.5) / 0.5)))
        expected = F.interpolate(F.normalize(stride32, dim=1), size=(4, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found["patch"][..., 120:], expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def photo(example_photos: Path, name: str, size_px: int) -> torch.Tensor:
    image = Image.open(example_photos / name).convert("RGB").resize((size_px, size_px))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.weights("efficientnet-lite2")
def test_lite2_tells_a_cat_from_a_cup(example_photos: Path) -> None:
    teacher = load_teacher("efficientnet-lite2", CPU)
    assert teacher.source.licence == "Apache-2.0" and teacher.source.sha256 is not None
    cat, cup = (teacher(photo(example_photos, name, 224), (14, 14)) for name in ("chelsea.png", "coffee.png"))
    mirrored = teacher(photo(example_photos, "chelsea.png", 224).flip(-1), (14, 14))
    same = F.cosine_similarity(cat["cls"], mirrored["cls"])
    assert same > 0.9 > F.cosine_similarity(cat["cls"], cup["cls"])


@pytest.mark.parametrize("name", ["xfeat", "aliked"])
def test_matching_teachers_follow_the_picture(name: str, example_photos: Path) -> None:
    """A picture moved by one token moves its tokens by one: mutual nearest tokens find the shift."""
    shift_px = 16
    teacher = load_teacher(name, CPU)
    whole = photo(example_photos, "astronaut.png", 288)
    grid = (8, 8)
    a = teacher(whole[..., 80:208, 80:208], grid)["patch"][0]
    b = teacher(whole[..., 80:208, 80 + shift_px : 208 + shift_px], grid)["patch"][0]
    assert a.shape == (64, teacher.widths["patch"])
    near = (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).argmax(1)
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    inner = columns >= 2
    right = (near // 8 == rows) & (near % 8 == columns - 1)
    assert right[inner].float().mean() > 0.5


@pytest.mark.parametrize("name", ["xfeat", "aliked"])
def test_other_grids_and_half_precision(name: str, example_photos: Path) -> None:
    image = photo(example_photos, "rocket.jpg", 56)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = load_teacher(name, CPU, torch.bfloat16)(image, (4, 4))["patch"]
    assert tokens.shape[:2] == (1, 16) and torch.isfinite(tokens).all()


@pytest.mark.parametrize("open_file", [open_xfeat, pytest.param(published_xfeat, marks=pytest.mark.weights("xfeat"))])
def test_xfeat_without_kornia_is_kornias(open_file: Callable[[], ThirdPartyWeights], example_photos: Path) -> None:
    """Equal to kornia's network on the same weights, bit for bit; kornia is not imported for it."""
    image = photo(example_photos, "astronaut.png", 96)
    net = kornia_matchers.xfeat_network(open_file())
    with torch.inference_mode():
        expected = F.normalize(net(image)[0], dim=1)
    tokens = load_teacher("xfeat", CPU)(image, (6, 6))["patch"]
    assert torch.equal(tokens, as_tokens(F.pixel_unshuffle(expected, 2)))


@pytest.mark.parametrize(
    ("name", "source", "bundled"),
    [("xfeat", "xfeat", "xfeat-lighterglue-bundled"), ("aliked", "aliked-n16", "aliked-lightglue-bundled")],
)
def test_teachers_of_matching_come_with_dune(
    name: str, source: str, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setattr(third_party, "_is_here", lambda name: False)
    teacher = load_teacher(name, CPU)
    copy = weights_folder.locate(bundled)
    assert copy.entry is not None and teacher.source.sha256 == copy.entry.sha256
    assert teacher.source.name == source and "comes with dune" in teacher.note


@pytest.mark.weights("xfeat", "aliked-n16")
def test_the_copies_are_the_published_files_rounded() -> None:
    xfeat = third_party._open_copy("xfeat-lighterglue-bundled", "xfeat", ("xfeat.", "detector."))
    aliked = third_party._open_copy("aliked-lightglue-bundled", "aliked-n16", ("aliked.",))
    for copy, published in ((xfeat, published_xfeat()), (aliked, open_third_party("aliked-n16", "aliked-n16"))):
        kept, whole = copy.state_dict, published.state_dict
        assert {key for key in whole if key not in kept and not key.startswith(kornia_matchers.UNUSED)} == set()
        for key, value in kept.items():  # batch statistics are as they were published
            assert torch.equal(value, whole[key]) or torch.equal(value, whole[key].half().float()), key


def test_a_manifest_without_registers_is_dinov2_too(images: torch.Tensor, tmp_path: Path) -> None:
    torch.save(make_state_dict(dinov2_manifest(64, 1, 4), 3), tmp_path / "plain.pth")
    assert load_teacher(f"dinov2={tmp_path / 'plain.pth'}", CPU)(images, (4, 5))["cls"].shape == (2, 64)
