"""Laws of sampling, augmentation, schedules, PHI-S and students."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dune_cli.errors import UserError
from dune_cli.training.common.dataset import Augmentation, augment
from dune_cli.training.common.loop import learning_rate, weight_decay_groups
from dune_cli.training.common.sampler import Sampler, held_out_mask
from dune_cli.training.distill.projectors import PROJECTORS
from dune_cli.training.distill.step import scale_and_clip
from dune_cli.training.distill.students import Student, freeze_unused, ladder_levels, new_encoder
from dune_cli.training.distill.teacher_norm import (
    PhiSMoments,
    PhiSNorm,
    RunningTokenNorm,
    balancing_rotation,
    norm_momentum,
)

CPU = torch.device("cpu")


def test_a_step_is_balanced_and_the_published_128_are_43_43_42() -> None:
    assert Sampler((1000, 500, 300), 128, 0).counts == (43, 43, 42)
    for rank in (0, 1):  # 128 images each on two processes
        groups = [slot.group for slot in Sampler((1000, 500, 300), 256, 0, rank, 2).slots(5)]
        assert len(groups) == 128 and all(groups.count(group) in (42, 43) for group in range(3))
    with pytest.raises(UserError, match="too small"):
        Sampler((5, 5, 5), 2, 0)


@pytest.mark.parametrize(("sizes", "batch"), [((12, 5, 3), 6), ((7,), 3), ((10, 10), 5)])
def test_each_item_comes_once_an_epoch(sizes: tuple[int, ...], batch: int) -> None:
    sampler = Sampler(sizes, batch, 3)
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(20):
        for slot in sampler.all_slots(step):
            seen.setdefault((slot.group, slot.epoch), []).append(slot.index)
    for (group, epoch), items in seen.items():
        assert len(set(items)) == len(items)
        if (group, epoch + 1) in seen:
            assert sorted(items) == list(range(sizes[group]))
    assert seen[0, 0] != seen[0, 1]  # shuffled anew
    steps = sampler.steps_per_epoch
    assert {slot.index for step in range(steps) for slot in sampler.all_slots(step) if slot.group == 0} == set(
        range(sizes[0])
    )


def test_the_sampler_has_no_state_and_ranks_share_a_step() -> None:
    sizes, batch = (11, 7), 12
    whole = Sampler(sizes, batch, 5)
    assert whole.all_slots(9) == Sampler(sizes, batch, 5).all_slots(9)
    assert whole.all_slots(9) != Sampler(sizes, batch, 6).all_slots(9)
    for ranks in (2, 3, 4):
        parts = [Sampler(sizes, batch, 5, rank, ranks).slots(9) for rank in range(ranks)]
        assert sorted((slot for part in parts for slot in part), key=str) == sorted(whole.all_slots(9), key=str)
    with pytest.raises(UserError, match="multiple of the 5 processes"):
        Sampler(sizes, batch, 5, 0, 5)


def test_held_out_photos_do_not_depend_on_the_others() -> None:
    names = [f"{index}.jpg" for index in range(2000)]
    flags = dict(zip(names, held_out_mask(names, 0.1)))
    assert 150 < sum(flags.values()) < 250
    assert held_out_mask(names[::-3], 0.1) == [flags[name] for name in names[::-3]]
    assert held_out_mask(names[:5], 0.0) == [False] * 5
    assert sum(held_out_mask(["a", "b", "c"], 1e-9)) == 1 and held_out_mask(["a"], 1e-9) == [False]


def gradient_image() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(90), indexing="ij")
    return torch.stack([rows * 4, columns * 2, rows + columns]).to(torch.uint8)


def test_augmentation_is_a_function_of_its_seed() -> None:
    image, settings = gradient_image(), Augmentation()
    crops = [augment(image, 32, settings, np.random.default_rng([7, k])) for k in range(60)]
    for k, crop in enumerate(crops):
        assert crop.shape == (3, 32, 32) and crop.dtype == torch.float32
        assert crop.min() >= 0 and crop.max() <= 1 and torch.isfinite(crop).all()
        assert torch.equal(crop, augment(image, 32, settings, np.random.default_rng([7, k])))
    assert len({crop.sum().item() for crop in crops}) == 60
    grey = sum(bool((crop[0] == crop[1]).all()) for crop in crops)
    assert 4 <= grey <= 22  # p = 0.2


def test_without_colours_only_the_crop_and_the_flip_remain() -> None:
    image = gradient_image()
    settings = Augmentation(photometric=False)
    flips = 0
    for k in range(40):
        crop = augment(image, 32, settings, np.random.default_rng(k))
        left_to_right = crop[1].mean(0).diff().mean()
        flips += int(left_to_right < 0)
        assert crop[0].mean(1).diff().mean() > 0  # never upside down
        area = abs(left_to_right) * 32 / (2 / 255) * crop[0].mean(1).diff().mean() * 32 / (4 / 255)
        assert 0.35 < area / (60 * 90) < 1.05  # scale (0.4, 1)
    assert 10 < flips < 30
    tall = augment(torch.zeros(3, 300, 16, dtype=torch.uint8), 14, settings, np.random.default_rng(0))
    assert tall.shape == (3, 14, 14)


def test_schedules_have_the_published_shape() -> None:
    steps = 1000
    rates = [learning_rate(step, steps, 3e-4) for step in range(steps)]
    assert rates[0] == 0 and max(rates) == rates[200] == pytest.approx(3e-4) and rates[-1] == pytest.approx(1e-6)
    assert np.allclose(np.diff(rates[:200]), 3e-4 / 200)
    assert all(np.diff(rates[200:]) <= 0)
    assert rates[200 + 400] == pytest.approx((3e-4 + 1e-6) / 2, rel=0.01)  # half way down the cosine
    momenta = [norm_momentum(step, steps) for step in range(steps)]
    assert momenta[0] == 1 and momenta[-1] == pytest.approx(1e-3) and all(np.diff(momenta) < 0)
    assert learning_rate(0, 1, 3e-4) == pytest.approx(3e-4) and norm_momentum(0, 1) == 1


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


def test_the_teacher_norm_can_be_undone() -> None:
    norm = RunningTokenNorm(5).train()
    x = torch.randn(40, 5) * 3 + 1
    norm(x, 1.0)
    torch.testing.assert_close(norm.eval().restore(norm(x)), x, atol=1e-5, rtol=1e-5)


def test_gradients_are_clipped_one_parameter_at_a_time() -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.grad, module.bias.grad = torch.full((2, 3), 4.0), torch.tensor([0.03, 0.04])
    scale_and_clip(module, torch.tensor(2.0))
    assert module.weight.grad.norm().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(module.bias.grad, torch.tensor([0.06, 0.08]))  # below 1: scaled, not clipped


@pytest.mark.parametrize("projector", sorted(PROJECTORS))
def test_projectors_and_unused_parameters(projector: str) -> None:
    widths = {"a": {"cls": 24, "patch": 24}, "b": {"patch": 10}}
    student = Student(new_encoder("vit:64x4", 28, 0), widths, projector, 0)
    freeze_unused(student, 28)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.norm.weight", "encoder.norm.bias"}
    out = student(torch.rand(2, 3, 28, 28))
    assert {name: {kind: tuple(v.shape) for kind, v in kinds.items()} for name, kinds in out.items()} == {
        "a": {"cls": (2, 24), "patch": (2, 4, 24)},
        "b": {"patch": (2, 4, 10)},
    }
    decayed, free = weight_decay_groups(student, 0.03)
    assert free["weight_decay"] == 0 and all(parameter.ndim <= 1 for parameter in free["params"])
    assert len(decayed["params"]) + len(free["params"]) + 2 == len(list(student.parameters()))
    if projector == "lp":
        assert student.levels == (0, 1, 2, 3) and ladder_levels(12) == (2, 5, 8, 11)


def test_students_are_drawn_as_the_recipe_says() -> None:
    student = new_encoder("vit:64x2", 28, 4)
    again, other = new_encoder("vit:64x2", 28, 4), new_encoder("vit:64x2", 28, 5)
    assert torch.equal(student.pos_embed, again.pos_embed) and not torch.equal(student.pos_embed, other.pos_embed)
    assert student.register_tokens.shape == (1, 4, 64) and student.config.position_policy == "offset"
    assert student.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert student.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert student.cls_token.abs().max() < 1e-5 and student.blocks[1].ls2.gamma.unique().item() == pytest.approx(1e-4)
    assert student.blocks[0].attn.qkv.bias.abs().max() == 0
    timm_student = new_encoder("timm:resnet10t", 32, 4)
    state = torch.random.get_rng_state()
    same = new_encoder("timm:resnet10t", 32, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(timm_student.model.conv1[0].weight, same.model.conv1[0].weight)
