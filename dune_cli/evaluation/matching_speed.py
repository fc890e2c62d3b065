"""Speed of reciprocal matching against two plain ways, which must give the same matches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dune_cli.errors import JobFailed
from dune_cli.geometry.matching import reciprocal_matches

Pairs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class MatchingSpeed:
    """Seconds of the three ways for all mutual nearest neighbours of two maps; `identical`: the same matches.

    The gains are other seconds / own seconds.
    """

    grid_hw: tuple[int, int]
    channels: int
    matches: int
    seconds: float
    full_matrix_seconds: float
    kd_tree_seconds: float
    full_matrix_gain: float
    kd_tree_gain: float
    identical: bool


def made_up_descriptors(grid: tuple[int, int], channels: int, seed: int) -> Pairs:
    """Two maps (H, W, C) of unit descriptors: the second is the first, moved by a tenth of its width, and noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(*grid, channels, generator=generator)
    noise = torch.randn(*grid, channels, generator=generator)
    second = first.roll(grid[1] // 10, 1) + 0.8 * noise
    return F.normalize(first, dim=-1), F.normalize(second, dim=-1)


def full_matrix(first: torch.Tensor, second: torch.Tensor) -> Pairs:
    """Mutual nearest neighbours by the whole score matrix at once; flat indices."""
    scores = first.flatten(0, 1) @ second.flatten(0, 1).T
    there, back = scores.argmax(1), scores.argmax(0)
    index = torch.arange(len(there))
    mutual = back[there] == index
    return index[mutual], there[mutual]


def kd_tree(first: torch.Tensor, second: torch.Tensor) -> Pairs:
    """The same by two KD-trees: for unit vectors the nearest one has the largest dot product."""
    from scipy.spatial import cKDTree

    one, two = (x.flatten(0, 1).double().numpy() for x in (first, second))
    workers = torch.get_num_threads()
    there = torch.from_numpy(cKDTree(two).query(one, workers=workers)[1])
    back = torch.from_numpy(cKDTree(one).query(two, workers=workers)[1])
    index = torch.arange(len(there))
    mutual = back[there] == index
    return index[mutual], there[mutual]


@torch.inference_mode()
def measure_matching(
    grid: tuple[int, int] = (96, 128),
    channels: int = 24,
    rounds: int = 3,
    seed: int = 0,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> MatchingSpeed:
    """Our chunked matching, the full matrix and the KD-trees in turns, on the CPU; the KD-trees once (they take long).

    Raises JobFailed if the full matrix does not fit into memory.
    """
    maps = made_up_descriptors(grid, channels, seed)
    now = time.process_time if cpu_time else time.perf_counter

    def timed(way: Callable[..., Any], *extra: Any) -> tuple[float, Pairs]:
        start = now()
        result = way(*maps, *extra)
        return now() - start, result

    timed(reciprocal_matches, 1)
    own: list[float] = []
    full: list[float] = []
    try:
        for turn in range(rounds):
            report(f"matching, round {turn + 1} of {rounds}")
            seconds, (xy1, xy2) = timed(reciprocal_matches, 1)
            own.append(seconds)
            seconds, plain = timed(full_matrix)
            full.append(seconds)
    except RuntimeError as error:
        raise JobFailed(f"the full score matrix of {grid[0] * grid[1]} pixels does not fit: {error}") from error
    report("matching by KD-trees")
    slow, tree = timed(kd_tree)
    flat = xy1[:, 1] * grid[1] + xy1[:, 0], xy2[:, 1] * grid[1] + xy2[:, 0]
    same = all(torch.equal(a, b) for other in (plain, tree) for a, b in zip(flat, other))
    return MatchingSpeed(
        grid, channels, len(xy1), min(own), min(full), slow, min(full) / min(own), slow / min(own), same
    )
