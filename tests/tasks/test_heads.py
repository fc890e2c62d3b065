"""Photos through heads of `dune train`: where their numbers land, and what they say of themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.geometry.cameras import K_from_focal
from dune_cli.io.photos import Photo
from dune_cli.models import heads
from dune_cli.models.dune_mini import MiniConfig, MiniEncoder
from dune_cli.models.heads import FeatureHeadConfig, HeadCard, HeadedEncoder
from dune_cli.provenance import Source
from dune_cli.tasks import classify, depth, segment

SETTINGS = {
    "indoor": {"photos": 7, "scale": "metric", "metric": 0.2, "metric_default_camera": 0.3, "relative": 0.1},
    "outdoor": {"photos": 5, "scale": "relative", "metric": 0.9, "metric_default_camera": 0.95, "relative": 0.25},
}
NAMES = ("wall", "sky", "road")


def encoder() -> MiniEncoder:
    torch.manual_seed(0)
    config = MiniConfig(width=64, depth=2, heads=1, hidden=64, parts=("conv",), conv=(8, 16, 16), conv_blocks=(1, 1))
    network = MiniEncoder(config).eval().requires_grad_(False)
    network.source = Source("mini", "1" * 64)
    return network


def headed(network: MiniEncoder, task: str, kind: str, outputs: int, card: HeadCard) -> HeadedEncoder:
    names = heads.default_features(network, task, kind)
    config = FeatureHeadConfig(task, kind, heads.measure(network, names), outputs, upsampling=2 if outputs == 1 else 1)
    torch.manual_seed(1)
    model = HeadedEncoder(network, heads.build_head(config), card).eval()
    model.source = Source(f"a head for {task}", "2" * 64, "apache-2.0")
    return model


CARD = HeadCard("mini", "1" * 64, 96, "apache-2.0", measured={"settings": SETTINGS})


@pytest.fixture
def model() -> HeadedEncoder:
    return headed(encoder(), "depth", "dpt", 1, CARD)


def scene_of(model: HeadedEncoder, number: int) -> HeadedEncoder:
    """A scene head that takes every pixel for class `number`."""
    card = replace(CARD, classes=NAMES)
    scene = headed(model.encoder, "segmentation", "linear", len(NAMES), card)
    torch.nn.init.zeros_(scene.head.project.weight)
    scene.head.project.bias.data = torch.eye(len(NAMES))[number]
    return scene


def photo(width: int, height: int) -> Photo:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Photo(Path("p.png"), rgb, "0" * 64)


def camera(seen: Photo, focal_px: float = 100.0, source: str = "given") -> tuple[np.ndarray, str]:
    return K_from_focal(focal_px, seen.width, seen.height), source


@pytest.mark.parametrize("width, height", [(160, 120), (120, 160), (97, 61), (1000, 750)])
def test_depth_has_the_photos_pixels_and_grows_with_the_focal_length(
    model: HeadedEncoder, width: int, height: int
) -> None:
    seen = photo(width, height)
    one = depth.predict(model, seen, camera(seen))
    two = depth.predict(model, seen, camera(seen, 200.0))
    assert one.depth.shape == (height, width) and one.valid.all()
    assert np.allclose(two.depth, 2 * one.depth, rtol=1e-5)
    network_width, network_height = one.network_size
    assert network_width % 16 == network_height % 16 == 0
    assert abs(network_width * network_height / 96**2 - 1) < 0.4
    assert one.network_from_image[0, 0] == network_width / width
    larger = depth.predict(model, seen, camera(seen), size_px=160)
    assert max(larger.network_size) == 160


def test_a_photo_that_is_mirrored_with_flip(model: HeadedEncoder) -> None:
    seen = photo(96, 96)
    mirrored = Photo(seen.path, np.ascontiguousarray(seen.rgb[:, ::-1]), seen.sha256)
    one, two = (depth.predict(model, p, camera(p), flip=True) for p in (seen, mirrored))
    assert np.allclose(one.depth, two.depth[:, ::-1], rtol=1e-3)


@pytest.mark.parametrize(
    ("number", "source", "setting", "scale", "abs_rel"),
    [
        (0, "given", "indoor", "metric", 0.2),
        (0, "default", "indoor", "metric", 0.3),
        (2, "given", "outdoor", "relative", 0.25),
        (None, "given", None, "relative", 0.25),
    ],
)
def test_the_scale_is_what_was_measured_for_such_photos(
    model: HeadedEncoder, number: int | None, source: str, setting: str | None, scale: str, abs_rel: float
) -> None:
    model.scene = None if number is None else scene_of(model, number)
    seen = photo(96, 96)
    result = depth.predict(model, seen, camera(seen, source=source))
    assert (result.expected.setting, result.expected.scale, result.expected.abs_rel) == (setting, scale, abs_rel)
    document = depth.document(result, Path("d.png"), {}, {})
    assert document["scale"] == scale
    assert document["unit"] == ("metre" if scale == "metric" else None)
    assert document["expected_error"]["abs_rel"] == abs_rel


def test_a_head_that_measured_nothing_says_nothing(model: HeadedEncoder) -> None:
    model.card = replace(CARD, measured={})
    seen = photo(96, 96)
    result = depth.predict(model, seen, camera(seen))
    assert result.expected is None
    document = depth.document(result, Path("d.png"), {}, {})
    assert document["scale"] == "metric" and "expected_error" not in document


def test_the_sky_has_no_depth(model: HeadedEncoder) -> None:
    model.scene = scene_of(model, 1)
    seen = photo(96, 96)
    assert not depth.predict(model, seen, camera(seen)).valid.any()
    model.scene = scene_of(model, 0)
    assert depth.predict(model, seen, camera(seen)).valid.all()
    assert [source.name for source in model.sources] == ["a head for depth", "mini", "a head for segmentation"]


@pytest.mark.parametrize("width, height", [(160, 120), (1500, 300)])
def test_class_maps_have_the_photos_pixels(width: int, height: int) -> None:
    card = replace(CARD, classes=NAMES, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    model = headed(encoder(), "segmentation", "dpt", 3, card)
    result = segment.predict(model, photo(width, height))
    assert result.classes.shape == (height, width)
    assert result.names == NAMES and result.colors.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert all(side % 16 == 0 for side in result.scales[0])


def test_classes_are_named_by_the_file() -> None:
    model = headed(encoder(), "classification", "linear", 3, replace(CARD, classes=NAMES))
    scores = classify.predict(model, photo(100, 60), 2)
    assert len(scores) == 2 and {score.name for score in scores} <= set(NAMES)
    document = classify.document(photo(100, 60), scores, {})
    assert document["names_from"] == "the weight file" and document["classes"][0]["wordnet_id"] is None
