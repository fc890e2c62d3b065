"""DINOv2's published heads: the parity fixture through official files, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dune_cli import load_classifier, load_depth, load_encoder, load_segmenter, load_two_view
from dune_cli.checkpoints import adapters
from dune_cli.checkpoints.weight_files import read_weights, write_safetensors
from dune_cli.errors import CheckpointError, UserError, WeightsMissing
from dune_cli.models.mast3r import TwoViewDepth
from support.dinov2_head_files import VOC_NAMES, head_manifest, write_encoder, write_fixture, write_head
from support.published_files import Fixture, deviation, dune_manifest, dune_tree, make_state_dict, mast3r_tree

NEAR, FAR = 5e-5, 5e-4
HEADS = ("linear", "linear4", "dpt")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fixture, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return write_fixture(folder), folder


def tolerance(name: str) -> float:
    return FAR if name.startswith("kitti_linear") or name.endswith("hub80") else NEAR


def depth_of(folder: Path, name: str, **options: object) -> object:
    return load_depth(folder / f"dinov2_vits14_{name}_head.pth", device="cpu", **options)


@pytest.mark.parametrize("name", [f"{data}_{head}" for data in ("nyu", "kitti") for head in HEADS])
def test_depth(published: tuple[Fixture, Path], name: str) -> None:
    fixture, folder = published
    model, image = depth_of(folder, name), fixture.image()
    step = 5 if name.endswith("dpt") else 3
    raw, depth = model.raw(image), model(image)
    assert deviation(raw[..., ::step, ::step], fixture.expected[f"{name}_raw"]) < tolerance(name)
    assert depth.shape == (1, 150, 235)
    assert deviation(depth[..., ::5, ::5], fixture.expected[name]) < tolerance(name)


@pytest.mark.parametrize("name", ["nyu_dpt", "kitti_linear4"])
def test_depth_flip_average(published: tuple[Fixture, Path], name: str) -> None:
    fixture, folder = published
    depth = depth_of(folder, name)(fixture.image(), flip=True)
    assert deviation(depth[..., ::5, ::5], fixture.expected[f"{name}_flip"]) < tolerance(name)


@pytest.mark.parametrize(
    "file, output, depth_range",
    [("nyu_linear", "nyu_linear_hub80", (0.001, 80.0)), ("nyu_dpt", "nyu_dpt_narrow", (0.2, 0.6))],
)
def test_depth_in_another_range(
    published: tuple[Fixture, Path], file: str, output: str, depth_range: tuple[float, float]
) -> None:
    fixture, folder = published
    depth = depth_of(folder, file, depth_range=depth_range)(fixture.image())
    assert deviation(depth[..., ::5, ::5], fixture.expected[output]) < tolerance(output)


@pytest.mark.parametrize("name", ["linear", "linear4"])
def test_classifier(published: tuple[Fixture, Path], name: str) -> None:
    fixture, folder = published
    height, width = fixture.config["cls_hw"]
    model = load_classifier(folder / f"dinov2_vits14_{name}_head.pth", device="cpu")
    logits = model(fixture.image()[..., :height, :width])
    assert deviation(logits[0], fixture.expected[f"imagenet_{name}"]) < NEAR
    with pytest.raises(ValueError, match="multiples of the patch size 14"):
        model(fixture.image())


@pytest.mark.parametrize("name", [f"{data}_{head}" for data in ("ade20k", "voc2012") for head in ("linear", "ms")])
def test_segmenter_one_window(published: tuple[Fixture, Path], name: str) -> None:
    fixture, folder = published
    model, image = load_segmenter(folder / f"dinov2_vits14_{name}_head.pth", device="cpu"), fixture.image()
    assert deviation(model.raw(image)[0, :, ::3, ::3], fixture.expected[f"{name}_raw"]) < NEAR
    assert deviation(model(image)[0, :, ::23, ::23], fixture.expected[name]) < NEAR


def test_segmenter_windows(published: tuple[Fixture, Path]) -> None:
    fixture, folder = published
    model = load_segmenter(folder / "dinov2_vits14_ade20k_linear_head.pth", device="cpu")
    slide = fixture.config["slide"]
    logits = model.slide(fixture.image(), slide["crop"][0], slide["stride"][0])
    assert deviation(logits[0, :, ::23, ::23], fixture.expected["ade20k_linear_slide"]) < NEAR
    assert deviation(logits.softmax(1)[0, :, ::23, ::23], fixture.expected["ade20k_linear_slide_prob"]) < NEAR
    classes = logits.argmax(1)[0, ::3, ::3]
    assert torch.equal(classes, torch.from_numpy(fixture.expected["ade20k_linear_slide_argmax"]).long())


def test_segmenter_scales_and_flips(published: tuple[Fixture, Path]) -> None:
    fixture, folder = published
    model = load_segmenter(folder / "dinov2_vits14_voc2012_ms_head.pth", device="cpu")
    slide, sizes = fixture.config["slide"], fixture.config["tta"]["scales_hw"]
    windows = {"crop_px": slide["crop"][0], "stride_px": slide["stride"][0]}
    probabilities = model.probabilities(fixture.image(), sizes=sizes, **windows)
    assert deviation(probabilities[0, :, ::23, ::23], fixture.expected["voc2012_ms_tta_prob"]) < NEAR
    classes = probabilities.argmax(1)[0, ::3, ::3]
    assert torch.equal(classes, torch.from_numpy(fixture.expected["voc2012_ms_tta_argmax"]).long())


def test_a_batch_equals_its_images(published: tuple[Fixture, Path]) -> None:
    fixture, folder = published
    images = torch.cat([fixture.image(), fixture.image(3)])
    depth, segmenter = (
        depth_of(folder, "nyu_dpt"),
        load_segmenter(folder / "dinov2_vits14_ade20k_ms_head.pth", device="cpu"),
    )
    assert torch.allclose(depth(images), torch.cat([depth(image[None]) for image in images]), atol=1e-5)
    one = torch.cat([segmenter.slide(image[None], 110, 73) for image in images])
    assert torch.allclose(segmenter.slide(images, 110, 73), one, atol=1e-4)


def test_names_and_colours_of_classes_come_from_the_file(published: tuple[Fixture, Path]) -> None:
    _, folder = published
    voc = load_segmenter(folder / "dinov2_vits14_voc2012_ms_head.pth", device="cpu")
    assert voc.class_names == VOC_NAMES
    assert voc.palette[5] == (5, 10, 15)
    assert voc.protocol.short_sides_px == (640, 844, 1107, 1459, 1920)
    ade = load_segmenter(folder / "dinov2_vits14_ade20k_linear_head.pth", device="cpu")
    assert (ade.classes, ade.class_names, ade.palette) == (150, (), ())
    assert (ade.protocol.crop_px, ade.protocol.stride_px, ade.protocol.longest_px) == (512, 341, None)


def converted(path: Path, folder: Path) -> Path:
    file = read_weights(path)
    tensors, header = adapters.to_safetensors(file.checkpoint, file.metadata)
    target = folder / f"{path.stem}.safetensors"
    write_safetensors(target, tensors, header)
    return target


def test_converted_files_give_the_same(published: tuple[Fixture, Path], tmp_path: Path) -> None:
    fixture, folder = published
    image, encoder = fixture.image(), folder / "dinov2_vits14_pretrain.pth"
    for stem, load in (("nyu_dpt", load_depth), ("kitti_linear4", load_depth), ("voc2012_ms", load_segmenter)):
        path = folder / f"dinov2_vits14_{stem}_head.pth"
        own = converted(path, tmp_path).rename(tmp_path / f"own-{stem.replace('_', '-')[4:]}.safetensors")
        first, second = load(path, device="cpu"), load(own, encoder=encoder, device="cpu")
        assert torch.equal(first(image), second(image))
    assert second.class_names == VOC_NAMES
    assert second.palette == first.palette
    head = converted(folder / "dinov2_vits14_linear_head.pth", tmp_path)
    assert torch.equal(
        load_classifier(head, encoder=encoder, device="cpu")(image[..., :140, :224]),
        load_classifier(folder / "dinov2_vits14_linear_head.pth", device="cpu")(image[..., :140, :224]),
    )


def test_the_encoder_is_found_by_the_heads_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = write_head(tmp_path, "dinov2_vits14_nyu_linear_head", 384, "linear", "nyu")
    with pytest.raises(WeightsMissing, match=r"needs its encoder dinov2_vits14_pretrain\.pth: .*Apache-2\.0"):
        load_depth(head, device="cpu")
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("DUNE_WEIGHTS", str(weights))
    encoder = write_encoder(weights, "dinov2_vits14_pretrain", 384, 12)
    assert load_depth(head, device="cpu").encoder.source.name == "dinov2-vits14"
    renamed = shutil.copy(head, tmp_path / "mine.pth")
    with pytest.raises(UserError, match="does not tell which encoder"):
        load_depth(renamed, device="cpu")
    assert load_depth(renamed, encoder=encoder, device="cpu").maximum == 10.0  # from the text in meta


def test_the_depth_range_must_be_known(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path, "dinov2_vits14_pretrain", 384, 12)
    head = write_head(tmp_path, "mine", 384, "linear", "nyu")
    with pytest.raises(UserError, match="--depth-range"):
        load_depth(head, encoder=encoder, device="cpu")
    assert load_depth(head, encoder=encoder, device="cpu", depth_range=(0.5, 3.0)).minimum == 0.5
    with pytest.raises(CheckpointError, match="impossible"):
        load_depth(head, encoder=encoder, device="cpu", depth_range=(3.0, 0.5))


def test_files_of_other_kinds_say_what_they_are(published: tuple[Fixture, Path], tmp_path: Path) -> None:
    _, folder = published
    stem = "dinov2_vits14"
    encoder, depth = folder / f"{stem}_pretrain.pth", folder / f"{stem}_nyu_dpt_head.pth"
    with pytest.raises(CheckpointError, match=r"DINOv2's depth head \(DPT.*not an encoder model; load_depth"):
        load_encoder(depth, device="cpu")
    with pytest.raises(CheckpointError, match=r"a DINOv2 encoder .*not a depth, a two-view or a multi-view model"):
        load_depth(encoder, device="cpu")
    with pytest.raises(CheckpointError, match=r"segmentation head \(.*150 classes\), not a classifier model"):
        load_classifier(folder / f"{stem}_ade20k_ms_head.pth", device="cpu")
    with pytest.raises(CheckpointError, match=r"classification head \(.*\), not a segmenter model; load_classifier"):
        load_segmenter(folder / f"{stem}_linear_head.pth", device="cpu")
    with pytest.raises(CheckpointError, match=r"depth head.*not an encoder model"):
        load_depth(depth, encoder=depth, device="cpu")
    with pytest.raises(CheckpointError, match=r"depth head.*not a two-view model"):
        load_two_view(depth, device="cpu")
    dune = tmp_path / "dune_vitsmall14_448.pth"
    torch.save(dune_tree(make_state_dict(dune_manifest(384, 1, 4, {}), 1)), dune)
    with pytest.raises(
        CheckpointError, match=r"a DUNE encoder; DINOv2's depth head needs .*dinov2 \(dinov2_vits14_pretrain\.pth"
    ):
        load_depth(depth, encoder=dune, device="cpu")


def test_a_damaged_head_lists_its_keys(published: tuple[Fixture, Path], tmp_path: Path) -> None:
    _, folder = published
    tree = dict(read_weights(folder / "dinov2_vits14_nyu_dpt_head.pth").checkpoint)
    tree["state_dict"] = {k: v for k, v in tree["state_dict"].items() if not k.startswith("decode_head.convs.2.")}
    torch.save(tree, tmp_path / "dinov2_vits14_nyu_dpt_head.pth")
    with pytest.raises(CheckpointError, match=r"decode_head\.convs\.2\.conv\.weight"):
        load_depth(
            tmp_path / "dinov2_vits14_nyu_dpt_head.pth", encoder=folder / "dinov2_vits14_pretrain.pth", device="cpu"
        )


def test_the_fixtures_files_have_the_shapes_of_the_manifests_here(published: tuple[Fixture, Path]) -> None:
    fixture, _ = published
    for stem, kind, data in (
        ("nyu_dpt", "dpt", "nyu"),
        ("kitti_linear4", "linear4", "kitti"),
        ("voc2012_ms", "ms", "voc2012"),
    ):
        prefix = f"dinov2_vits14_{stem}_head."
        there = {key.removeprefix(prefix): shape for key, shape in fixture.manifest.items() if key.startswith(prefix)}
        assert there == head_manifest(kind, 384, data)


def test_a_two_view_file_pairs_an_image_with_itself(tmp_path: Path) -> None:
    fixture = Fixture("mast3r_mini")
    path = tmp_path / "own.pth"
    torch.save(mast3r_tree(fixture.config["model"], fixture.state()), path)
    model, two_view = load_depth(path, device="cpu"), load_two_view(path, device="cpu")
    assert isinstance(model, TwoViewDepth)
    image = fixture.image(1)
    expected = two_view(image, image, descriptors=False)
    depth = model(image)
    assert torch.allclose(depth, expected.points1[..., 2], atol=1e-6)
    assert torch.allclose(model.points(image)[1], expected.confidence1)
    mirrored = model(image.flip(-1)).flip(-1)
    assert not torch.allclose(depth, mirrored)
    assert torch.allclose(model(image, flip=True), (depth + mirrored) / 2, atol=1e-6)
    odd = F.interpolate(image, size=(61, 97), mode="bilinear")
    assert model(odd).shape == (1, 61, 97)
    with pytest.raises(UserError, match="depth range"):
        load_depth(path, device="cpu", depth_range=(0.1, 1))
