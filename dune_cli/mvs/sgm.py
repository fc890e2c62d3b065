"""Semi-global smoothing of matching costs (H. Hirschmueller, "Stereo processing by semiglobal matching and mutual
information", PAMI 2008), in torch, for plane sweeps and for lists of hypotheses that differ from pixel to pixel."""

from __future__ import annotations

from collections.abc import Iterator

import torch

DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # (dy, dx) of a step


def smooth_planes(cost: torch.Tensor, small: float, large: torch.Tensor, directions: int = 8) -> torch.Tensor:
    """(D, H, W) sums over paths of `cost` (D, H, W) for ordered planes.

    A step to the next plane costs `small`, a further one `large` (H, W), at least `small`: lower where an image edge
    makes a depth edge likely. `directions`: 4 or 8. Memory: twice the cost.
    """
    total = torch.zeros_like(cost)
    for dy, dx in DIRECTIONS[:directions]:
        previous, last = None, None
        for index, line in _lines(cost.shape[1], cost.shape[2], dy, dx):
            here = cost[index]
            if previous is None:
                path = here.clone()
            else:
                before = _shifted(previous, dx if dy else 0)
                floor = before.amin(0)
                step = torch.minimum(before, (floor + large[line]).expand_as(before))
                step[1:] = torch.minimum(step[1:], before[:-1] + small)
                step[:-1] = torch.minimum(step[:-1], before[1:] + small)
                path = here + step - floor
            total[index] += path
            previous, last = path, line
        del previous, last
    return total


def smooth_lists(
    cost: torch.Tensor, labels: torch.Tensor, slope: float, large: torch.Tensor, directions: int = 4
) -> torch.Tensor:
    """(K, H, W) sums over paths of `cost` (K, H, W) for hypotheses `labels` (K, H, W) of each pixel's own.

    A step between labels costs `slope` times their difference, at most `large` (H, W). Quadratic in K.
    """
    total = torch.zeros_like(cost)
    for dy, dx in DIRECTIONS[:directions]:
        previous, labels_before = None, None
        for index, line in _lines(cost.shape[1], cost.shape[2], dy, dx):
            here, own = cost[index], labels[index]
            if previous is None:
                path = here.clone()
            else:
                before, theirs = (_shifted(value, dx if dy else 0) for value in (previous, labels_before))
                step = (own[:, None] - theirs[None]).abs_().mul_(slope)
                step = torch.minimum(step, large[line].expand_as(step)).add_(before[None]).amin(1)
                path = here + step - before.amin(0)
            total[index] += path
            previous, labels_before = path, own
    return total


def _lines(height: int, width: int, dy: int, dx: int) -> Iterator[tuple[tuple, tuple]]:
    """Rows or columns in the order of a path's steps: indices into (D, H, W) and into (H, W)."""
    if dy:
        for y in range(height) if dy > 0 else range(height - 1, -1, -1):
            yield (slice(None), y), (y,)
    else:
        for x in range(width) if dx > 0 else range(width - 1, -1, -1):
            yield (slice(None), slice(None), x), (slice(None), x)


def _shifted(line: torch.Tensor, dx: int) -> torch.Tensor:
    """(D, W) the values that a diagonal step by `dx` comes from; at the border the path goes straight on."""
    if dx > 0:
        return torch.cat([line[:, :1], line[:, :-1]], 1)
    if dx < 0:
        return torch.cat([line[:, 1:], line[:, -1:]], 1)
    return line
