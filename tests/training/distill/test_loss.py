"""Distillation losses, sharing strategies and teacher norms against the reference's values (fixture `distill_loss`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dune_cli.training.common.loop import learning_rate
from dune_cli.training.distill.config import STRATEGIES
from dune_cli.training.distill.loss import TokenLoss, coefficients, teacher_losses, token_loss
from dune_cli.training.distill.teacher_norm import RunningTokenNorm, norm_momentum

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


def test_teacher_norm_follows_the_reference(expected: dict, arrays: dict[str, torch.Tensor]) -> None:
    for teacher, types in expected["token_types"].items():
        for kind in types:
            norm = RunningTokenNorm(32).train()
            raw = arrays[f"teacher/{teacher}/{kind}"]
            for step, momentum in enumerate(expected["ema_momentum"]):
                out = norm(raw * (1 + 0.3 * step) + 0.2 * step, momentum)
                for name, value in (("out", out), ("mean", norm.mean), ("std", norm.std)):
                    want = arrays[f"tnorm/step{step}/{teacher}/{kind}/{name}"]
                    torch.testing.assert_close(value, want, atol=1e-5, rtol=0)
            torch.testing.assert_close(norm.eval()(raw), arrays[f"tnorm/eval/{teacher}/{kind}/out"], atol=1e-5, rtol=0)


def test_momentum_zero_uses_the_buffers() -> None:
    norm = RunningTokenNorm(3).train()
    x = torch.randn(5, 3)
    torch.testing.assert_close(norm(x, 0.0), x)


def test_a_constant_channel_is_not_blown_up() -> None:
    out = RunningTokenNorm(2).train()(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), 1.0)
    assert out[:, 0].abs().max() == 0


def test_lowest_loss_keeps_the_worst_and_drops_half_of_the_others() -> None:
    torch.manual_seed(0)
    per_image = torch.rand(4000, 3)
    kept = coefficients(per_image, "lowest_loss", generator=torch.Generator().manual_seed(1)) > 0
    worst = torch.nn.functional.one_hot(per_image.argmax(1), 3).bool()
    assert kept[worst].all()
    assert kept[~worst].float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_coefficients_sum_to_one_and_carry_no_gradient(strategy: str) -> None:
    weights = coefficients(torch.rand(6, 3, requires_grad=True), strategy, OWNER)
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad


def test_schedules() -> None:
    assert learning_rate(0, 100, 1.0) == 0
    assert learning_rate(10, 100, 1.0) == pytest.approx(0.5)
    assert learning_rate(20, 100, 1.0) == pytest.approx(1.0)
    assert learning_rate(99, 100, 1.0) == pytest.approx(1e-6)
    assert norm_momentum(0, 10) == 1
    assert norm_momentum(9, 10) == pytest.approx(1e-3)
