"""Class maps of photos: the protocol on the photo's pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli import load_segmenter
from dune_cli.io.photos import Photo
from dune_cli.models.dinov2_heads import Segmenter, window_starts
from dune_cli.tasks import segment as task
from support.dinov2_head_files import write_encoder, write_head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    folder = tmp_path_factory.mktemp("segment")
    write_encoder(folder, "dinov2_vits14_pretrain", 384, 1)
    return load_segmenter(
        write_head(folder, "dinov2_vits14_voc2012_linear_head", 384, "linear", "voc2012"), device="cpu"
    )


def photo(width: int, height: int) -> Photo:
    return Photo(Path("p.png"), np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8), "0" * 64)


@pytest.mark.parametrize("width, height", [(90, 60), (60, 90)])
def test_a_class_for_every_pixel(model: Segmenter, width: int, height: int) -> None:
    seen = photo(width, height)
    result = task.predict(model, seen)
    assert result.classes.shape == (height, width)
    assert result.scales == ((512, 768) if width > height else (768, 512),)
    image = torch.from_numpy(seen.rgb).permute(2, 0, 1)[None] / 255
    assert np.array_equal(result.classes, model.probabilities(image)[0].argmax(0).numpy())
    document = task.document(result, Path("c.png"), None, {})
    assert sum(entry["pixels"] for entry in document["classes"]) == width * height
    shares = [entry["share"] for entry in document["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert all(entry["name"] == model.class_names[entry["id"]] for entry in document["classes"])


def test_large_photos_are_reduced_and_their_classes_repeated(model: Segmenter) -> None:
    seen = photo(200, 120)
    small, large = task.predict(model, photo(50, 30)), task.predict(model, seen, size_px=50)
    assert large.classes.shape == (120, 200)
    assert small.classes.shape == (30, 50)
    assert np.array_equal(large.classes[::4, ::4].repeat(4, 0).repeat(4, 1), large.classes)


@pytest.mark.parametrize("height, width, longest", [(100, 150, 2048), (60, 300, 2048), (100, 200, None)])
def test_the_longest_side_bounds_the_scale(model: Segmenter, height: int, width: int, longest: int | None) -> None:
    (size,) = model.sizes(height, width)
    assert size == (min(512, round(height * 2048 / width)), min(2048, round(512 * width / height)))


@pytest.mark.parametrize(
    "length, crop, stride, expected",
    [
        (235, 110, 73, [0, 73, 125]),
        (150, 110, 73, [0, 40]),
        (110, 110, 73, [0]),
        (80, 110, 73, [0]),
        (183, 110, 73, [0, 73]),
    ],
)
def test_windows_cover_the_axis(length: int, crop: int, stride: int, expected: list[int]) -> None:
    assert window_starts(length, crop, stride) == expected


def test_windows_must_be_positive(model: Segmenter) -> None:
    with pytest.raises(ValueError, match="positive pixels"):
        model.slide(torch.zeros(1, 3, 50, 50), 0, 10)


def test_a_strip_is_not_enlarged_without_bound(
    model: Segmenter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert task.predict(model, photo(400, 16)).scales == ((82, 2048),)  # by VOC2012's own bound
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(model, "protocol", replace(model.protocol, longest_px=None))
    result = task.predict(model, photo(400, 16))
    assert result.scales == ((82, 2048),)
    assert result.classes.shape == (16, 400)
    assert "very elongated" in capsys.readouterr().err
