"""The cheapest pairing of rows with columns, exactly."""

from __future__ import annotations

import numpy as np


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cost (R, C), finite -> (rows, columns), min(R, C) pairs of least total cost, rows ascending.

    The Hungarian method with potentials and shortest augmenting paths, O(min² max): Kuhn 1955; Jonker and Volgenant,
    "A shortest augmenting path algorithm for dense and sparse linear assignment problems", 1987. ValueError for
    matrices of another rank and for costs that are not finite.
    """
    cost = np.asarray(cost, np.float64)
    if cost.ndim != 2 or not np.isfinite(cost).all():
        raise ValueError(f"costs must be a finite (R, C) matrix, received {cost.shape}")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count, wide = cost.shape
    row_potential, column_potential = np.zeros(count), np.zeros(wide)
    row_of = np.full(wide, -1)
    for first in range(count):
        shortest, before = np.full(wide, np.inf), np.full(wide, -1)
        done = np.zeros(wide, bool)
        row, column, length = first, -1, 0.0
        while True:  # Dijkstra over the columns, from the row `first` to a free one
            through = length + cost[row] - row_potential[row] - column_potential
            better = ~done & (through < shortest)
            shortest[better], before[better] = through[better], column
            column = int(np.argmin(np.where(done, np.inf, shortest)))
            length = shortest[column]
            if row_of[column] < 0:
                break
            done[column] = True
            row = int(row_of[column])
        row_potential[first] += length
        row_potential[row_of[done]] += length - shortest[done]
        column_potential[done] -= length - shortest[done]
        while column >= 0:  # every row of the path takes the next column
            earlier = int(before[column])
            row_of[column] = first if earlier < 0 else row_of[earlier]
            column = earlier
    columns = np.flatnonzero(row_of >= 0)
    order = np.argsort(row_of[columns])
    return row_of[columns][order], columns[order]
