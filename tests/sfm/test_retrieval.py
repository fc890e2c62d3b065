"""Global descriptors: one pass a photo, photos of a kind beside each other, neighbours as brute force finds them."""

from __future__ import annotations

import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from dune_cli.geometry.camera_models import Camera
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photos import read_photo
from dune_cli.matchers.registry import names
from dune_cli.matchers.sift import Sift
from dune_cli.models.patch_embed import Tokens
from dune_cli.provenance import Source
from dune_cli.sfm import retrieval
from dune_cli.sfm.photo_map import MapImage, PhotoMap


class Pixels(nn.Module):
    """An encoder whose patch tokens are random projections of the patches; counts its passes."""

    patch, width = 16, 64

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Conv2d(3, self.width, self.patch, self.patch)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor, norm: bool = True) -> Tokens:
        self.shapes.append(tuple(images.shape))
        patches = self.project(images - 0.5)
        return Tokens(
            patches.mean(dim=(2, 3)),
            patches.new_zeros(len(images), 0, self.width),
            patches.flatten(2).mT,
            tuple(patches.shape[2:]),
        )


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_every_photo_is_encoded_once_at_the_small_size() -> None:
    encoder, rng = Pixels(), np.random.default_rng(0)
    photos = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((320, 448, 3), (448, 320, 3), (90, 90, 3))]
    found = retrieval.encoder_descriptors(encoder, iter(photos))
    assert encoder.shapes == [(1, 3, 160, 224), (1, 3, 224, 160), (1, 3, 224, 224)]
    assert found.shape == (3, 64) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[1], retrieval.encoder_descriptor(encoder, photos[1]))
    assert retrieval.encoder_descriptors(encoder, []).shape == (0, 64)


@pytest.mark.parametrize("k", [1, 5, 400])
def test_nearest_is_what_brute_force_finds(k: int) -> None:
    rows = unit(np.random.default_rng(1).standard_normal((700, 24)))
    indices, cosines = retrieval.nearest_neighbours(rows, k)
    full = rows @ rows.T
    np.fill_diagonal(full, -np.inf)
    np.testing.assert_array_equal(indices, np.argsort(-full, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(cosines, np.take_along_axis(full, indices, axis=1), atol=1e-6)


def test_rank_orders_the_rows_and_ties_keep_theirs() -> None:
    rows = unit(np.array([[1.0, 0], [0, 1], [1, 0], [1, 1]]))
    indices, cosines = retrieval.rank(rows[:1], rows)
    assert indices.tolist() == [[0, 2, 3, 1]]
    np.testing.assert_allclose(cosines, [[1, 1, 2**-0.5, 0]], atol=1e-6)
    assert retrieval.rank(rows[:1], rows, 2)[0].tolist() == [[0, 2]]
    assert retrieval.nearest_neighbours(rows[:1], 3)[0].shape == (1, 0)


def test_keypoints_of_one_place_are_alike(example_photos: Path) -> None:
    sift = Sift(working_size_px=480, max_keypoints=2000)
    photos = []
    for name in ("motorcycle_left.png", "motorcycle_right.png", "chelsea.png", "coffee.png", "astronaut.png"):
        rgb = read_photo(example_photos / name).rgb
        photos.append(cv2.resize(rgb, (480, 360), interpolation=cv2.INTER_AREA))
    sets = [sift.extract(rgb).descriptors for rgb in photos]
    found = retrieval.vlad_descriptors(len(sets), sets.__getitem__)
    indices, _ = retrieval.nearest_neighbours(found, 1)
    assert indices[0, 0] == 1 and indices[1, 0] == 0
    np.testing.assert_array_equal(found, retrieval.vlad_descriptors(len(sets), sets.__getitem__))
    empty = retrieval.vlad_descriptors(2, lambda i: sets[0] if i else np.zeros((0, 128), np.float32))
    assert not empty[0].any() and empty[1].any()
    assert not retrieval.vlad_descriptors(2, lambda i: np.zeros((0, 128), np.float32)).any()


def test_centring_keeps_what_tells_photos_apart() -> None:
    rng = np.random.default_rng(2)
    own = unit(rng.standard_normal((40, 16)))
    shared = unit(own + 20 * unit(rng.standard_normal((1, 16))))
    assert (shared @ shared.T).min() > 0.9
    again = retrieval.subtract_mean(shared)
    assert np.median(np.sum(again * own, axis=1)) > 0.8


def test_ten_thousand_photos_take_little_memory() -> None:
    rows = unit(np.random.default_rng(3).standard_normal((10_000, 192)))
    tracemalloc.start()
    start = time.process_time()
    indices, _ = retrieval.nearest_neighbours(rows, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert indices.shape == (10_000, 10)
    assert peak < 150e6 and time.process_time() - start < 30


def test_a_map_is_opened_without_its_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = []
    for index in range(5):
        file = tmp_path / f"{index}.png"
        cv2.imwrite(str(file), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
        camera = Camera.pinhole(np.diag([64.0, 64.0, 1.0]), 64, 64)
        images.append(MapImage(file.name, file, camera, np.eye(4)))

    def retrieve(number: int) -> list[int]:
        encoder = Pixels()
        encoder.source = Source("pixels", "0" * 64)  # type: ignore[assignment]
        fresh = tuple(replace(image) for image in images)  # their hashes are not known
        photo_map = PhotoMap(tmp_path, fresh, "metric", None)
        retriever = retrieval.ImageRetriever(photo_map, 2, lambda: encoder, WorkFolder(tmp_path / "work"))
        found = retriever.retrieve(read_photo(images[number].file).rgb)
        passes.append(len(encoder.shapes))
        return [index for index, _ in found]

    passes: list[int] = []
    first = retrieve(3)
    assert first[0] == 3 and passes == [6]
    hashed: list[Path] = []
    monkeypatch.setattr("dune_cli.sfm.photo_map.sha256_of", hashed.append)
    assert retrieve(3) == first and passes == [6, 1] and not hashed
    monkeypatch.undo()
    images[3].file.write_bytes(images[4].file.read_bytes())
    os.utime(images[3].file, ns=(1, 1))
    assert sorted(retrieve(4)) == [3, 4] and passes[-1] == 1  # of the query: the photos' own entries are there


def test_retrieval_is_no_matcher() -> None:
    assert "retrieval" not in names()
