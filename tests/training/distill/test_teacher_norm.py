"""Teacher norms: PHI-S balances and can be undone, running statistics follow the reference (fixture `distill_loss`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dune_cli.training.distill.teacher_norm import (
    PhiSMoments,
    PhiSNorm,
    RunningTokenNorm,
    balancing_rotation,
    fit_phi_s,
)


@pytest.fixture(scope="module")
def expected(parity: Path) -> dict:
    return json.loads((parity / "distill_loss.json").read_text())


@pytest.fixture(scope="module")
def arrays(parity: Path) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(parity / "distill_loss.npz").items()}


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


def test_tokens_that_do_not_count_are_not_in_the_statistics() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(4, 6, 3), (torch.rand(4, 6) < 0.5).float()
    norm, other = RunningTokenNorm(3).train(), RunningTokenNorm(3).train()
    norm(torch.where(weights[..., None] > 0, x, 1e3), 1.0, weights)
    other(x[weights > 0], 1.0)
    torch.testing.assert_close(norm.mean, other.mean)
    torch.testing.assert_close(norm.std, other.std)
    before = norm.mean.clone()
    torch.testing.assert_close(norm(x, 1.0, torch.zeros(4, 6)), norm.eval()(x))
    torch.testing.assert_close(norm.mean, before)
    moments, of_valid = {"t": {"patch": PhiSNorm(3)}}, PhiSMoments(3)
    norms = nn.ModuleDict({name: nn.ModuleDict(types) for name, types in moments.items()})
    fit_phi_s(norms, [{"t": {"patch": x, "valid": weights}}])
    of_valid.add(x[weights > 0])
    of_valid.fit(expected := PhiSNorm(3))
    torch.testing.assert_close(norms["t"]["patch"].rotation, expected.rotation)


def test_a_constant_channel_is_not_blown_up() -> None:
    out = RunningTokenNorm(2).train()(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), 1.0)
    assert out[:, 0].abs().max() == 0


def test_the_teacher_norm_can_be_undone() -> None:
    norm = RunningTokenNorm(5).train()
    x = torch.randn(40, 5) * 3 + 1
    norm(x, 1.0)
    torch.testing.assert_close(norm.eval().restore(norm(x)), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 7, 48])
def test_phi_s_rotation_is_orthogonal_and_balances(width: int) -> None:
    factors = torch.randn(width, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    covariance = factors @ torch.diag(torch.logspace(-3, 3, width, dtype=torch.float64)) @ factors.T
    q = balancing_rotation(covariance)
    torch.testing.assert_close(q @ q.T, torch.eye(width, dtype=torch.float64), atol=1e-10, rtol=0)
    variances = (q @ covariance @ q.T).diagonal()
    torch.testing.assert_close(variances / variances.mean(), torch.ones_like(variances), atol=1e-8, rtol=0)


def test_phi_s_standardises_by_one_scale_and_can_be_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 500, 12, generator=generator) * torch.logspace(-2, 1, 12) + 3
    norm, fit = PhiSNorm(12), PhiSMoments(12)
    for batch in tokens:
        fit.add(batch)
    fit.fit(norm)
    out = norm(tokens)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std((0, 1)), torch.ones(12), atol=1e-2, rtol=0)
    torch.testing.assert_close(norm.restore(out), tokens, atol=1e-4, rtol=1e-4)
    a, b = tokens[0, :200], tokens[1, :200]  # distances keep their order: a rotation and one scale
    torch.testing.assert_close((norm(a) - norm(b)).norm(dim=1), (a - b).norm(dim=1) * norm.scale, atol=1e-4, rtol=1e-4)
