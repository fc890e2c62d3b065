"""Speed of reciprocal matching against a full score matrix and KD-trees, which must give the same matches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from dune_cli.errors import JobFailed
from dune_cli.evaluation.speed import Stopwatch
from dune_cli.matchers.nearest_neighbours import reciprocal_matches

IndexPairs = tuple[torch.Tensor, torch.Tensor]  # flat indices of matched pixels in both maps


@dataclass(frozen=True)
class MatchingSpeed:
    """Seconds of the three ways for all mutual nearest neighbours of two maps. identical: whether the matches are
    equal. The gains are seconds of the other way / own seconds."""

    grid_hw: tuple[int, int]
    channels: int
    matches: int
    seconds: float
    full_matrix_seconds: float
    kd_tree_seconds: float
    full_matrix_gain: float
    kd_tree_gain: float
    identical: bool


@torch.inference_mode()
def measure_matching(
    grid: tuple[int, int] = (96, 128),
    channels: int = 24,
    rounds: int = 3,
    seed: int = 0,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> MatchingSpeed:
    """Times the three ways in turn, on the CPU; the KD-trees once, because they are slow.

    JobFailed if the full matrix does not fit into memory.
    """
    first, second = random_descriptors(grid, channels, seed)
    watch = Stopwatch(torch.device("cpu"), cpu_time)

    def timed(match: Callable[[], IndexPairs]) -> tuple[float, IndexPairs]:
        start = watch.now()
        pairs = match()
        return watch.now() - start, pairs

    def own() -> IndexPairs:
        return reciprocal_matches(first, second, 1)

    own()
    own_seconds: list[float] = []
    matrix_seconds: list[float] = []
    try:
        for number in range(rounds):
            report(f"matching, round {number + 1} of {rounds}")
            seconds, (xy1, xy2) = timed(own)
            own_seconds.append(seconds)
            seconds, by_matrix = timed(lambda: full_matrix(first, second))
            matrix_seconds.append(seconds)
    except RuntimeError as error:
        raise JobFailed(f"the full score matrix of {grid[0] * grid[1]} pixels does not fit: {error}") from error
    report("matching by KD-trees")
    tree_seconds, by_trees = timed(lambda: kd_tree(first, second))
    by_own = xy1[:, 1] * grid[1] + xy1[:, 0], xy2[:, 1] * grid[1] + xy2[:, 0]
    return MatchingSpeed(
        grid_hw=grid,
        channels=channels,
        matches=len(xy1),
        seconds=min(own_seconds),
        full_matrix_seconds=min(matrix_seconds),
        kd_tree_seconds=tree_seconds,
        full_matrix_gain=min(matrix_seconds) / min(own_seconds),
        kd_tree_gain=tree_seconds / min(own_seconds),
        identical=all(torch.equal(a, b) for other in (by_matrix, by_trees) for a, b in zip(by_own, other)),
    )


def random_descriptors(grid: tuple[int, int], channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two maps (H, W, C) of unit descriptors: the second is the first, moved by a tenth of its width, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(*grid, channels, generator=generator)
    noise = torch.randn(*grid, channels, generator=generator)
    second = first.roll(grid[1] // 10, 1) + 0.8 * noise
    return F.normalize(first, dim=-1), F.normalize(second, dim=-1)


def full_matrix(first: torch.Tensor, second: torch.Tensor) -> IndexPairs:
    """Mutual nearest neighbours of maps (H, W, C) by the whole score matrix."""
    scores = first.flatten(0, 1) @ second.flatten(0, 1).T
    return _mutual(scores.argmax(1), scores.argmax(0))


def kd_tree(first: torch.Tensor, second: torch.Tensor) -> IndexPairs:
    """The same by two KD-trees: of unit vectors the nearest one has the largest dot product."""
    from scipy.spatial import cKDTree

    points1, points2 = (descriptors.flatten(0, 1).double().numpy() for descriptors in (first, second))
    workers = torch.get_num_threads()
    nearest2 = torch.from_numpy(cKDTree(points2).query(points1, workers=workers)[1])
    nearest1 = torch.from_numpy(cKDTree(points1).query(points2, workers=workers)[1])
    return _mutual(nearest2, nearest1)


def _mutual(nearest2: torch.Tensor, nearest1: torch.Tensor) -> IndexPairs:
    """The pairs whose points are each other's nearest."""
    index = torch.arange(len(nearest2))
    mutual = nearest1[nearest2] == index
    return index[mutual], nearest2[mutual]
