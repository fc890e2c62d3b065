"""Laws of the guided filter."""

from __future__ import annotations

import torch

from dune_cli.models.guided_filter import guided_upsample


def test_a_constant_stays_one_whatever_the_photo() -> None:
    torch.manual_seed(0)
    fine = guided_upsample(torch.full((1, 2, 6, 8), 3.0), torch.rand(1, 3, 48, 64))
    assert tuple(fine.shape) == (1, 2, 48, 64)
    assert torch.allclose(fine, torch.full_like(fine, 3.0), atol=1e-4)


def test_what_is_linear_in_colour_is_found_again() -> None:
    torch.manual_seed(0)
    guide = torch.rand(1, 3, 12, 16).repeat_interleave(4, 2).repeat_interleave(4, 3)
    wanted = 2 * guide[:, :1] - guide[:, 1:2] + 0.5 * guide[:, 2:] + 1
    coarse = torch.nn.functional.interpolate(wanted, size=(12, 16), mode="area")
    fine = guided_upsample(coarse, guide, eps=1e-8)
    assert (fine - wanted).abs().max() < 1e-3


def test_edges_follow_the_photo() -> None:
    """A step that the coarse map has between its cells lies in the fine map where the photo has it."""
    guide = torch.zeros(1, 3, 32, 64)
    guide[..., 30:] = 1.0
    coarse = torch.ones(1, 1, 8, 16)
    coarse[..., 8:] = 2.0
    coarse[..., 7] = 1.5
    fine = guided_upsample(coarse, guide)[0, 0, 16]
    jumps = fine.diff()
    assert int(jumps.argmax()) == 29 and float(jumps[29]) > 0.7
    blurred = torch.nn.functional.interpolate(coarse, size=(32, 64), mode="bilinear")[0, 0, 16]
    assert float(jumps[29]) > 4 * float(blurred.diff().max())


def test_without_structure_in_the_photo_the_map_is_smoothed() -> None:
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 9, 9)
    fine = guided_upsample(coarse, torch.full((1, 3, 9, 9), 0.3), radius=1)
    assert fine[..., 3:6, 3:6].std() < 0.5 * coarse.std()


def test_cells_without_weight_do_not_count() -> None:
    coarse, mask = torch.ones(1, 1, 6, 6), torch.ones(1, 1, 6, 6)
    coarse[..., 3, 3], mask[..., 3, 3] = 100.0, 0.0
    fine = guided_upsample(coarse, torch.rand(1, 3, 12, 12), mask=mask)
    assert torch.allclose(fine, torch.ones_like(fine), atol=1e-4)
