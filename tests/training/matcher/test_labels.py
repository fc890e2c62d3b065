"""Labels: exact under a known homography, honest where only sparse correspondences are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dune_cli.errors import UserError
from dune_cli.geometry.epipolar import fundamental_from_pose
from dune_cli.training.matcher import scenes
from dune_cli.training.matcher.dataset import apply_homography, photometric_noise, random_homography, warped_pair
from dune_cli.training.matcher.loss import exact_labels, sparse_labels, transfer_by_affine

SIZE = (320, 256)


def test_exact_labels_are_the_homography_s() -> None:
    rng = np.random.default_rng(0)
    H = random_homography(SIZE, rng)
    points0 = rng.uniform(0, 1, (300, 2)) * SIZE
    there = apply_homography(H, points0)
    inside = np.isfinite(there).all(1) & (there >= 0).all(1) & (there < np.array(SIZE) - 1).all(1)
    order = rng.permutation(np.flatnonzero(inside))
    points1 = there[order] + rng.uniform(-0.5, 0.5, (len(order), 2))
    back = np.linalg.inv(H)
    labels = exact_labels(points0, points1, there, apply_homography(back / back[2, 2], points1), SIZE, SIZE)
    assert len(labels.matches) > 10
    distance = np.linalg.norm(there[labels.matches[:, 0]] - points1[labels.matches[:, 1]], axis=1)
    assert distance.max() < 3
    assert len(np.unique(labels.matches[:, 0])) == len(np.unique(labels.matches[:, 1])) == len(labels.matches)
    assert set(np.flatnonzero(~inside)) <= set(labels.unmatched0)
    assert not set(labels.unmatched0) & set(labels.matches[:, 0])
    assert not set(labels.unmatched1) & set(labels.matches[:, 1])


def test_a_warped_photo_shows_what_its_homography_says() -> None:
    rng = np.random.default_rng(5)
    ramp = np.stack(np.meshgrid(np.arange(400), np.arange(300)), -1) / 2
    pair = warped_pair(np.concatenate([ramp, ramp[..., :1]], -1).astype(np.uint8), 320, rng)
    assert pair.rgb0.shape[0] % 32 == pair.rgb0.shape[1] % 32 == 0
    ys, xs = np.nonzero(pair.valid1)
    back = np.linalg.inv(pair.H)
    there = apply_homography(back / back[2, 2], np.stack([xs, ys], 1)[:: max(1, len(xs) // 500)].astype(float))
    assert np.isfinite(there).all()
    assert (there > -1).all() and (there < np.array(pair.rgb0.shape[1::-1])).all()
    first, again = (photometric_noise(pair.rgb0, np.random.default_rng(2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_sparse_labels_follow_the_surface_and_the_epipolar_line() -> None:
    """A plane that recedes, seen by two cameras; a fifth of the keypoints have nothing known near them."""
    rng = np.random.default_rng(1)
    K = np.array([[300.0, 0, 160], [0, 300, 128], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, 3] = 0.4, 0.05, 0.1
    pixels = rng.uniform(0, 1, (600, 2)) * SIZE
    rays = np.concatenate([pixels, np.ones((600, 1))], 1) @ np.linalg.inv(K).T
    points = rays * (3 / (1 - 0.3 * rays[:, :1]))
    moved = (points + pose[:3, 3]) @ K.T
    there = moved[:, :2] / moved[:, 2:]
    F = fundamental_from_pose(pose, K, K)
    F /= np.linalg.norm(F)
    known = rng.permutation(600)[:250]
    known = known[pixels[known, 0] < 0.8 * SIZE[0]]
    labels = sparse_labels(pixels, there, pixels[known], there[known], F)
    assert len(labels.matches) > 300
    assert (labels.matches[:, 0] == labels.matches[:, 1]).mean() > 0.97
    far = pixels[:, 0] > 0.8 * SIZE[0] + 40
    assert not far[labels.unmatched0].any()  # unknown is not unmatchable
    other = np.setdiff1d(np.arange(600), known)
    few = sparse_labels(pixels, there[known], pixels[known], there[known], F)
    sure = np.isin(few.unmatched0, other)
    assert sure.mean() > 0.95


def test_disagreeing_correspondences_carry_nothing() -> None:
    rng = np.random.default_rng(2)
    known = rng.uniform(0, 100, (40, 2))
    assert np.isnan(transfer_by_affine(known + 1, known, rng.uniform(0, 100, (40, 2)))).all()
    np.testing.assert_allclose(transfer_by_affine(known + 1, known, 2 * known + 7), 2 * (known + 1) + 7, atol=0.02)
    nothing = sparse_labels(known, known, known[:3], known[:3], None)
    assert len(nothing.matches) == len(nothing.unmatched0) == 0


def test_the_benchmark_s_scenes_are_never_among_them(shared_data: Path, tmp_path: Path) -> None:
    pairs = json.loads((shared_data / "pairs" / "wide" / "pairs.json").read_text())["pairs"]
    assert {Path(pair["image_a"]).parent.name for pair in pairs} == scenes.BENCHMARK
    sequences = shared_data.parent / "corpus" / "sequences"
    if sequences.is_dir():
        assert not {scene.name for scene in scenes.find_scenes([sequences], 0.1)} & scenes.BENCHMARK


def test_scenes_are_found_and_held_out_together(tmp_path: Path) -> None:
    for name in ("rock_0", "rock_1", "fern", "tower", "lonely"):
        (tmp_path / name).mkdir()
        for index in range(1 if name == "lonely" else 3):
            (tmp_path / name / f"{index}.jpg").touch()
    found = scenes.find_scenes([tmp_path], 0.0, ["rock_0"])
    assert [(scene.name, scene.held_out) for scene in found] == [("rock_0", True), ("tower", False), ("rock_1", True)]
    with pytest.raises(UserError, match="no scene moon"):
        scenes.find_scenes([tmp_path], 0.0, ["moon"])
    with pytest.raises(UserError, match="no folder of two or more photos"):
        scenes.find_scenes([tmp_path / "lonely"], 0.0)
    with pytest.raises(UserError, match="fern, scenes that 'dune eval pairs' tests on"):
        scenes.refuse_benchmark(["tower", "fern"])
