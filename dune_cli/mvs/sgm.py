"""Semi-global cost aggregation (H. Hirschmueller, "Stereo processing by semiglobal matching and mutual information",
PAMI 2008) in torch, for plane sweeps and for depth hypotheses that differ from pixel to pixel."""

from __future__ import annotations

from collections.abc import Iterator

import torch

DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # (dy, dx) of a step


def aggregate_planes(cost: torch.Tensor, p1: float, p2: torch.Tensor, directions: int = 8) -> torch.Tensor:
    """(D, H, W) path costs summed over 4 or 8 `directions`, of the matching `cost` (D, H, W) of ordered planes.

    A step to the next plane costs `p1`, any further step `p2` (H, W) >= `p1`, which should be low across image edges.
    Memory: twice the cost.
    """
    total = torch.zeros_like(cost)
    for dy, dx in DIRECTIONS[:directions]:
        previous = None
        for index, line in _scan_lines(cost.shape[1], cost.shape[2], dy, dx):
            line_cost = cost[index]
            if previous is None:
                path = line_cost.clone()
            else:
                before = _shift_line(previous, dx if dy else 0)
                lowest = before.amin(0)
                step = torch.minimum(before, (lowest + p2[line]).expand_as(before))
                step[1:] = torch.minimum(step[1:], before[:-1] + p1)
                step[:-1] = torch.minimum(step[:-1], before[1:] + p1)
                path = line_cost + step - lowest
            total[index] += path
            previous = path
    return total


def aggregate_hypotheses(
    cost: torch.Tensor, hypotheses: torch.Tensor, slope: float, p2: torch.Tensor, directions: int = 4
) -> torch.Tensor:
    """(K, H, W) path costs summed over `directions`, of the `cost` (K, H, W) of each pixel's own `hypotheses`
    (K, H, W).

    A step between two hypotheses costs `slope` times their difference, at most `p2` (H, W). Quadratic in K.
    """
    total = torch.zeros_like(cost)
    for dy, dx in DIRECTIONS[:directions]:
        previous, previous_values = None, None
        for index, line in _scan_lines(cost.shape[1], cost.shape[2], dy, dx):
            line_cost, values = cost[index], hypotheses[index]
            if previous is None:
                path = line_cost.clone()
            else:
                before, values_before = (_shift_line(x, dx if dy else 0) for x in (previous, previous_values))
                step = (values[:, None] - values_before[None]).abs_().mul_(slope)
                step = torch.minimum(step, p2[line].expand_as(step)).add_(before[None]).amin(1)
                path = line_cost + step - before.amin(0)
            total[index] += path
            previous, previous_values = path, values
    return total


def _scan_lines(height: int, width: int, dy: int, dx: int) -> Iterator[tuple[tuple, tuple]]:
    """Rows or columns in the order of a path's steps: indices into (D, H, W) and into (H, W)."""
    if dy:
        for y in range(height) if dy > 0 else range(height - 1, -1, -1):
            yield (slice(None), y), (y,)
    else:
        for x in range(width) if dx > 0 else range(width - 1, -1, -1):
            yield (slice(None), slice(None), x), (slice(None), x)


def _shift_line(line: torch.Tensor, dx: int) -> torch.Tensor:
    """(D, W) the values that a diagonal step by `dx` comes from; at the border the path continues straight."""
    if dx > 0:
        return torch.cat([line[:, :1], line[:, :-1]], 1)
    if dx < 0:
        return torch.cat([line[:, 1:], line[:, -1:]], 1)
    return line
