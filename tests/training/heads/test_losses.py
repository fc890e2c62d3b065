"""Losses and scores against numbers worked out by hand, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dune_cli.training.heads import losses, metrics


def test_depth_loss_by_hand() -> None:
    """Two pixels of 1 m and 2 m, predicted 2 m and 2 m: log ratios ln 2 and 0, mean ln 2 / 2, one step of ln 2."""
    true = torch.tensor([[[1.0, 2.0, 0.0]]], dtype=torch.float64)
    predicted = torch.full((1, 1, 3), math.log(2), dtype=torch.float64)
    ln2 = math.log(2)
    invariant, gradient = ln2 / 2, ln2 / 4  # one of four steps has a pair of known pixels
    want = 0.5 * ln2 / 2 + invariant + 0.5 * gradient
    assert float(losses.depth_loss(predicted, true, torch.tensor([True]))) == pytest.approx(want, abs=1e-12)
    want -= 0.5 * ln2 / 2
    assert float(losses.depth_loss(predicted, true, torch.tensor([False]))) == pytest.approx(want, abs=1e-12)


def test_depth_loss_laws() -> None:
    torch.manual_seed(0)
    true = torch.rand(2, 9, 12, dtype=torch.float64) + 0.5
    predicted = torch.randn(2, 9, 12, dtype=torch.float64)
    known, unknown = torch.tensor([True, True]), torch.tensor([False, False])
    assert torch.allclose(losses.depth_loss(true.log(), true, known), torch.zeros(2, dtype=torch.float64))
    both = losses.depth_loss(predicted, true, unknown), losses.depth_loss(predicted + 1.7, true, unknown)
    assert torch.allclose(*both)  # without a camera the scale does not count
    assert not torch.allclose(
        losses.depth_loss(predicted, true, known), losses.depth_loss(predicted + 1.7, true, known)
    )
    mirrored = losses.depth_loss(predicted.flip(-1), true.flip(-1), known)
    assert torch.allclose(losses.depth_loss(predicted, true, known), mirrored)
    empty = losses.depth_loss(predicted, torch.zeros_like(true), known)
    assert torch.equal(empty, torch.zeros(2, dtype=torch.float64))


def test_disparity_loss_ignores_scale_and_shift() -> None:
    torch.manual_seed(0)
    disparity = torch.rand(1, 8, 8, dtype=torch.float64) + 0.1
    predicted = -(3 * disparity + 0.7).log()
    assert float(losses.disparity_loss(predicted, disparity)) == pytest.approx(0, abs=1e-9)
    noise = torch.randn(1, 8, 8, dtype=torch.float64)
    one = losses.disparity_loss(noise, disparity)
    assert float(one) > 0.1
    assert torch.allclose(one, losses.disparity_loss(noise, 5 * disparity))
    turned = losses.disparity_loss((3 * disparity + 0.7).log(), disparity)  # far where it is near: no negative scale
    assert float(turned) > 0.3


def test_class_losses_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    logits[0, 1, 0, 1] = math.log(3)
    classes = torch.tensor([[[255, 1]]])
    assert float(losses.class_map_loss(logits, classes)) == pytest.approx(math.log(4 / 3))
    assert float(losses.class_map_loss(logits, torch.tensor([[[0, 1]]]))) == pytest.approx(math.log(8 / 3) / 2)
    teacher = torch.zeros_like(logits)
    want = (0 + 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert float(losses.distillation_loss(logits, teacher)) == pytest.approx(want)
    assert float(losses.distillation_loss(logits, logits + 5)) == pytest.approx(0, abs=1e-12)


def test_depth_scores_by_hand() -> None:
    true, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 4.0])
    score = metrics.depth_score(predicted, true)
    assert score.abs_rel == pytest.approx(0.5 / 3)
    assert score.rmse == pytest.approx(math.sqrt(1 / 3))
    assert score.delta1 == pytest.approx(2 / 3)
    assert score.si_log == pytest.approx(100 * np.log([1, 2, 1]).std())
    assert metrics.depth_score(10 * true, true, "median").abs_rel == pytest.approx(0)
    assert metrics.depth_score(3 * true + 1, true, "affine").abs_rel == pytest.approx(0, abs=1e-9)
    flat = metrics.align(np.full(3, 7.0), true, "affine")
    assert np.allclose(flat, flat[0]) and 1 < flat[0] < 2
    with pytest.raises(ValueError, match="pixels"):
        metrics.depth_score(np.zeros(0), np.zeros(0))
    assert metrics.disparity_correlation(1 / (2 * true + 1), true) == pytest.approx(1)
    assert metrics.disparity_correlation(np.ones(3), true) == 0


def test_edge_recall() -> None:
    true = np.ones((20, 20))
    true[:, 10:] = 2
    assert metrics.edge_recall(3 * true, true) == 1
    assert metrics.edge_recall(np.roll(true, 2, 1), true) == 1  # 2 px are close enough
    shifted = np.ones((20, 20))
    shifted[:, 16:] = 2
    assert metrics.edge_recall(shifted, true) == 0
    assert metrics.edge_recall(np.ones((20, 20)), true) == 0
    assert math.isnan(metrics.edge_recall(true, np.ones((20, 20))))


def test_class_map_scores_by_hand() -> None:
    true = np.array([[0, 0, 1, 255]], np.uint8)
    matrix = metrics.confusion(np.array([[0, 1, 1, 1]]), true, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.class_iou(matrix)[:2].tolist() == [0.5, 0.5] and math.isnan(metrics.class_iou(matrix)[2])
    assert metrics.mean_iou(matrix) == 0.5
