"""Reciprocal nearest neighbours: the fixture exactly, the laws of the algorithm, ties, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dune_cli.matchers import nearest_neighbours


def unit_map(height: int, width: int, channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(height, width, channels, generator=generator), dim=2)


def plain_walk(desc1: torch.Tensor, desc2: torch.Tensor, subsample: int, iterations: int) -> set[tuple[int, int]]:
    """The algorithm one point at a time over the full score matrix."""
    scores = (desc1.flatten(0, 1).double() @ desc2.flatten(0, 1).double().T).numpy()
    to2, to1 = scores.argmax(axis=1), scores.argmax(axis=0)
    height, width, _ = desc1.shape
    found = set()
    for y in range(subsample // 2, height, subsample):
        for x in range(subsample // 2, width, subsample):
            point = y * width + x
            for _ in range(iterations):
                back = to1[to2[point]]
                if back == point:
                    found.add((int(point), int(to2[point])))
                    break
                point = back
    return found


def flat_pairs(xy1: torch.Tensor, xy2: torch.Tensor, width1: int, width2: int) -> list[tuple[int, int]]:
    return list(zip((xy1[:, 1] * width1 + xy1[:, 0]).tolist(), (xy2[:, 1] * width2 + xy2[:, 0]).tolist()))


@pytest.mark.parametrize("max_bytes", [None, 40_000, 1_000])
@pytest.mark.parametrize("subsample", [1, 8])
def test_fixture_is_met_exactly(parity: Path, subsample: int, max_bytes: int | None) -> None:
    fixture = np.load(parity / "reciprocal_matching.npz")
    xy1, xy2 = nearest_neighbours.reciprocal_matches(
        torch.from_numpy(fixture["desc1"]), torch.from_numpy(fixture["desc2"]), subsample, max_bytes=max_bytes
    )
    np.testing.assert_array_equal(xy1.numpy(), fixture[f"xy1_sub{subsample}"])
    np.testing.assert_array_equal(xy2.numpy(), fixture[f"xy2_sub{subsample}"])


def test_fixture_mutual_set(parity: Path) -> None:
    fixture = np.load(parity / "reciprocal_matching.npz")
    flat = [torch.from_numpy(fixture[key]).flatten(0, 1) for key in ("desc1", "desc2")]
    index1, index2 = nearest_neighbours.mutual_nearest(*flat)
    np.testing.assert_array_equal(index1.numpy(), fixture["mutual_idx1"])
    np.testing.assert_array_equal(index2.numpy(), fixture["mutual_idx2"])


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 13)] * 4),
    subsample=st.integers(1, 5),
    iterations=st.integers(1, 10),
    seed=st.integers(0, 1000),
    max_bytes=st.sampled_from([None, 4, 300, 5000]),
)
def test_equals_the_plain_walk(
    sizes: tuple[int, int, int, int], subsample: int, iterations: int, seed: int, max_bytes: int | None
) -> None:
    desc1, desc2 = unit_map(sizes[0], sizes[1], 6, seed), unit_map(sizes[2], sizes[3], 6, seed + 1)
    xy1, xy2 = nearest_neighbours.reciprocal_matches(desc1, desc2, subsample, iterations, max_bytes)
    pairs = flat_pairs(xy1, xy2, sizes[1], sizes[3])
    assert pairs == sorted(pairs), "sorted by the flat index in image 1"
    assert set(pairs) == plain_walk(desc1, desc2, subsample, iterations)
    assert len(pairs) == len(set(pairs))


def test_matching_a_map_with_itself_is_the_identity() -> None:
    desc = unit_map(9, 7, 24, 3)
    xy1, xy2 = nearest_neighbours.reciprocal_matches(desc, desc, 1)
    assert torch.equal(xy1, xy2)
    assert len(xy1) == 63


def test_swapping_the_images_swaps_the_full_set() -> None:
    desc1, desc2 = unit_map(11, 12, 8, 0), unit_map(10, 14, 8, 1)
    forward = nearest_neighbours.reciprocal_matches(desc1, desc2, 1)
    backward = nearest_neighbours.reciprocal_matches(desc2, desc1, 1)
    assert set(flat_pairs(*forward, 12, 14)) == {(a, b) for b, a in flat_pairs(*backward, 14, 12)}


@pytest.mark.parametrize("max_bytes", [None, 4, 64])
def test_ties_go_to_the_lowest_index(max_bytes: int | None) -> None:
    queries = torch.eye(3)
    database = torch.eye(3).repeat(50, 1)
    assert nearest_neighbours.nearest(queries, database, max_bytes).tolist() == [0, 1, 2]
    index1, index2 = nearest_neighbours.mutual_nearest(database, queries.repeat(2, 1), max_bytes)
    assert index1.tolist() == [0, 1, 2]
    assert index2.tolist() == [0, 1, 2]


def test_empty_descriptor_sets_give_no_matches() -> None:
    index1, index2 = nearest_neighbours.mutual_nearest(torch.zeros(0, 8), torch.ones(5, 8))
    assert len(index1) == len(index2) == 0
    xy1, xy2 = nearest_neighbours.reciprocal_matches(unit_map(3, 3, 8, 0), unit_map(9, 9, 8, 1), 8)
    assert xy1.shape == xy2.shape == (0, 2), "no grid point inside a 3x3 map"


def test_float64_is_compared_in_float64() -> None:
    queries = torch.ones(1, 1, dtype=torch.float64)
    database = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    assert nearest_neighbours.nearest(queries, database).item() == 1


def test_memory_of_scores_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        scores = product(left, right)
        largest = max(largest, scores.numel() * scores.element_size())
        return scores

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    nearest_neighbours.reciprocal_matches(unit_map(40, 50, 8, 0), unit_map(41, 43, 8, 1), 1, max_bytes=100_000)
    assert 50_000 < largest <= 100_000


@pytest.mark.parametrize(
    ("shape1", "shape2", "subsample"), [((4, 4, 3), (4, 4, 5), 8), ((4, 4), (4, 4, 5), 8), ((4, 4, 3), (4, 4, 3), 0)]
)
def test_maps_that_do_not_fit_are_refused(shape1: tuple, shape2: tuple, subsample: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        nearest_neighbours.reciprocal_matches(torch.zeros(shape1), torch.zeros(shape2), subsample)
