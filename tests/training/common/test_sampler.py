"""Which images a step holds, and which are held out: laws of the sampler."""

from __future__ import annotations

import pytest

from dune_cli.errors import UserError
from dune_cli.training.common.sampler import Sampler, held_out_mask


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
