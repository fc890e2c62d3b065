"""Semi-global cost aggregation (H. Hirschmueller, "Stereo processing by semiglobal matching and mutual information",
PAMI 2008) in torch, for plane sweeps and for depth hypotheses that differ from pixel to pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # (dy, dx) of a step


def aggregate_planes(cost: torch.Tensor, p1: float, p2: torch.Tensor, directions: int = 8) -> torch.Tensor:
    """(D, H, W) path costs summed over 4 or 8 `directions`, of the matching `cost` (D, H, W) of ordered planes.

    A step to the next plane costs `p1`, any further step `p2` (H, W) >= `p1`, which should be low across image edges.
    Memory: four times the cost.
    """

    def along_rows(cost: torch.Tensor, p2: torch.Tensor, steps: Sequence[tuple[int, int]]) -> torch.Tensor:
        total = torch.zeros_like(cost)
        for dy, dx in steps:
            path = None
            for y in _rows(cost.shape[1], dy):
                if path is None:
                    path = cost[:, y].clone()
                else:
                    before = _shift_line(path, dx)
                    lowest = before.amin(0)
                    path = torch.minimum(before, lowest + p2[y])
                    torch.minimum(path[1:], before[:-1] + p1, out=path[1:])
                    torch.minimum(path[:-1], before[1:] + p1, out=path[:-1])
                    path.sub_(lowest).add_(cost[:, y])
                total[:, y] += path
        return total

    return _sum_of_directions(along_rows, directions, cost, p2)


def aggregate_hypotheses(
    cost: torch.Tensor, hypotheses: torch.Tensor, slope: float, p2: torch.Tensor, directions: int = 4
) -> torch.Tensor:
    """(K, H, W) path costs summed over `directions`, of the `cost` (K, H, W) of each pixel's own `hypotheses`
    (K, H, W).

    A step between two hypotheses costs `slope` times their difference, at most `p2` (H, W). Quadratic in K.
    """

    def along_rows(
        cost: torch.Tensor, values: torch.Tensor, p2: torch.Tensor, steps: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        total = torch.zeros_like(cost)
        pairs = cost.new_empty((len(cost), len(cost), cost.shape[2]))  # of a hypothesis before and one here
        for dy, dx in steps:
            path, last = None, 0
            for y in _rows(cost.shape[1], dy):
                if path is None:
                    path = cost[:, y].clone()
                else:
                    before, values_before = _shift_line(path, dx), _shift_line(values[:, last], dx)
                    torch.sub(values[:, y], values_before[:, None], out=pairs).abs_().add_(before[:, None])
                    lowest = before.amin(0)
                    path = torch.minimum(pairs.amin(0), lowest + p2[y]).sub_(lowest).add_(cost[:, y])
                total[:, y] += path
                last = y
        return total

    return _sum_of_directions(along_rows, directions, cost, hypotheses * slope, p2)


def _sum_of_directions(along_rows: Callable[..., torch.Tensor], directions: int, *maps: torch.Tensor) -> torch.Tensor:
    """The sum of `along_rows(*maps, steps)` over the steps that change the row and, of transposed maps, the others, so
    that a scan line is contiguous in memory."""
    steps = DIRECTIONS[:directions]
    total = along_rows(*maps, [step for step in steps if step[0]])
    transposed = [one.transpose(-1, -2).contiguous() for one in maps]
    return total + along_rows(*transposed, [(dx, dy) for dy, dx in steps if not dy]).transpose(-1, -2)


def _rows(height: int, dy: int) -> range:
    return range(height) if dy > 0 else range(height - 1, -1, -1)


def _shift_line(line: torch.Tensor, dx: int) -> torch.Tensor:
    """(D, W) the values that a diagonal step by `dx` comes from; at the border the path continues straight."""
    if dx > 0:
        return torch.cat([line[:, :1], line[:, :-1]], 1)
    if dx < 0:
        return torch.cat([line[:, 1:], line[:, -1:]], 1)
    return line
