"""Distillation losses and sharing strategies against the reference's values (fixture `distill_loss`), and clipping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.training.distill.config import STRATEGIES
from dune_cli.training.distill.loss import TokenLoss, coefficients, teacher_losses, teacher_mask, token_loss
from dune_cli.training.distill.step import scale_and_clip

OWNER = torch.tensor([0, 1, 2, 0, 1, 2])  # in19k, Habitat, BEDLAM, GLDv2, Niantic, AGORA


@pytest.fixture(scope="module")
def expected(parity: Path) -> dict:
    return json.loads((parity / "distill_loss.json").read_text())


@pytest.fixture(scope="module")
def arrays(parity: Path) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(parity / "distill_loss.npz").items()}


@pytest.fixture(scope="module")
def losses(expected: dict, arrays: dict[str, torch.Tensor]) -> dict[str, dict[str, TokenLoss]]:
    return {
        teacher: {
            t: token_loss(arrays[f"student/{teacher}/{t}"], arrays[f"tnorm/step0/{teacher}/{t}/out"]) for t in types
        }
        for teacher, types in expected["token_types"].items()
    }


@pytest.mark.parametrize("strategy", ["none", "own_data", "own+generic_data", "lowest_loss_p1", "lowest_loss_p0"])
def test_losses_and_coefficients(expected: dict, losses: dict[str, dict[str, TokenLoss]], strategy: str) -> None:
    want = expected["loss"][strategy]
    got = {}
    per_image = teacher_losses(losses)
    name, _, probability = strategy.partition("_p")
    weights = coefficients(per_image, name, OWNER, drop_probability=float(probability or 0.5))
    for column, (teacher, types) in enumerate(losses.items()):
        for kind, loss in types.items():
            got[f"loss/dist_{kind}_cos_{teacher}"] = loss.cosine.mean()
            got[f"loss/dist_{kind}_sl1_{teacher}"] = loss.smooth_l1.mean()
            got[f"loss/dist_{kind}_{teacher}"] = loss.total.mean()
        got[f"loss/dist_{teacher}"] = per_image[:, column].mean()
        got[f"t_coeff_{teacher}"] = weights[:, column].sum()
    got["loss"] = (weights * per_image).sum()
    assert set(got) == set(want)
    for key, value in want.items():
        assert float(got[key]) == pytest.approx(value, abs=1e-6), key


def test_lowest_loss_keeps_the_worst_and_drops_half_of_the_others() -> None:
    torch.manual_seed(0)
    per_image = torch.rand(4000, 3)
    trains = coefficients(per_image, "lowest_loss", generator=torch.Generator().manual_seed(1)) > 0
    worst = torch.nn.functional.one_hot(per_image.argmax(1), 3).bool()
    assert trains[worst].all()
    assert trains[~worst].float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_coefficients_sum_to_one_and_carry_no_gradient(strategy: str) -> None:
    weights = coefficients(torch.rand(6, 3, requires_grad=True), strategy, OWNER)
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad


def test_tokens_that_are_not_valid_neither_count_nor_teach() -> None:
    torch.manual_seed(0)
    prediction = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 4, 6)
    valid = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    loss = token_loss(prediction, target, valid)
    every = token_loss(prediction, target)
    torch.testing.assert_close(loss.total[0], every.total[0])
    alone = token_loss(prediction[1:2, [0, 3]], target[1:2, [0, 3]])
    torch.testing.assert_close(loss.total[1:2], alone.total)
    assert loss.total[2] == 0
    loss.total.sum().backward()
    assert prediction.grad[1, 1:3].abs().max() == 0 and prediction.grad[2].abs().max() == 0
    cls = token_loss(torch.randn(3, 6), torch.randn(3, 6), valid)
    assert (cls.total[:2] > 0).all() and cls.total[2] == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_image_does_not_train_a_teacher_that_says_nothing_of_it(strategy: str) -> None:
    torch.manual_seed(0)
    losses = torch.rand(6, 3)
    losses[:, 1] = 9  # the highest: what lowest_loss would keep
    spoken = torch.ones(6, 3, dtype=torch.bool)
    spoken[2:, 1] = False
    mask = teacher_mask(losses, strategy, OWNER, draws=torch.rand(6, 3), spoken=spoken)
    assert mask[2:, 1].abs().max() == 0
    assert strategy.startswith("own") or (mask.sum(1) >= 1).all()
    if strategy == "lowest_loss":
        assert (mask[:2, 1] == 1).all()
        rest = losses[2:].clone()
        rest[:, 1] = 0
        assert (mask[torch.arange(2, 6), rest.argmax(1)] == 1).all()
    silent = teacher_mask(losses, strategy, OWNER, draws=torch.rand(6, 3), spoken=torch.zeros_like(spoken))
    assert silent.abs().max() == 0


def test_gradients_are_clipped_one_parameter_at_a_time() -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.grad, module.bias.grad = torch.full((2, 3), 4.0), torch.tensor([0.03, 0.04])
    scale_and_clip(module, torch.tensor(2.0))
    assert module.weight.grad.norm().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(module.bias.grad, torch.tensor([0.06, 0.08]))  # below 1: scaled, not clipped
