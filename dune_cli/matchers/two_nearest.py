"""The two nearest neighbours of unit descriptors without negative entries, such as RootSIFT's.

The two are found by 8-bit products, as COLMAP's are, and compared in float32. torch's kernel for 8 bits and float32
give the same products, which are integers below 2^24. So every processor finds the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from dune_cli.runtime import use_torch_threads

LEVELS = 254.0  # of an entry of 1; entries above one half, of which a unit descriptor has three at most, are cut
LARGEST = 127
ROWS = 128  # of a block, whose products stay in a processor's cache
IMPORT_FROM = 6e9  # products of descriptors that are to come, which torch saves more time on than its import takes
Products = Callable[[slice], np.ndarray]


def two_nearest(queries: np.ndarray, database: np.ndarray, times: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Nearest neighbour (N,) of unit descriptors (N, C) among those (M, C), and its distance over that of the second
    nearest (N,): 0 in a database of one descriptor, 1 in one of none. `times`: how often the like is to come."""
    nearest = np.zeros(len(queries), dtype=np.int64)
    if len(database) < 2 or not len(queries):
        return nearest, np.full(len(queries), 1 - len(database), dtype=np.float32)
    count = len(queries)
    second = np.empty(count, dtype=np.int64)
    products = _products(_quantised(queries), _quantised(database), times)
    for start in range(0, count, ROWS):
        rows = slice(start, min(start + ROWS, count))
        block = products(rows)
        best = block.argmax(axis=1)
        block[np.arange(len(block)), best] = -1
        nearest[rows], second[rows] = best, block.argmax(axis=1)
    cosines = [np.einsum("nc,nc->n", queries, database[index]) for index in (nearest, second)]
    swapped = cosines[1] > cosines[0]
    nearest = np.where(swapped, second, nearest)
    distances = np.sqrt(np.maximum(2 - 2 * np.sort(cosines, axis=0), 0))
    return nearest, distances[1] / np.maximum(distances[0], 1e-6)


def _quantised(descriptors: np.ndarray) -> np.ndarray:
    return np.rint(np.minimum(descriptors * LEVELS, LARGEST)).astype(np.int8)


def _products(queries: np.ndarray, database: np.ndarray, times: int) -> Products:
    """The products (rows, M) of the rows of `queries` (N, C) with `database` (M, C), in a buffer that the next call
    uses again: new arrays of this size have the system clear their pages, which took up to three times as long."""
    if "torch" in sys.modules or len(queries) * len(database) * times > IMPORT_FROM:
        return _torch_products(queries, database)
    return _numpy_products(queries, database)


def _numpy_products(queries: np.ndarray, database: np.ndarray) -> Products:
    buffer = np.empty((ROWS, len(database)), dtype=np.float32)
    as_float, columns = queries.astype(np.float32), database.astype(np.float32).T

    def products(rows: slice) -> np.ndarray:
        block = as_float[rows]
        return np.matmul(block, columns, out=buffer[: len(block)])

    return products


def _torch_products(queries: np.ndarray, database: np.ndarray) -> Products:
    import torch

    buffer = torch.empty((ROWS, len(database)), dtype=torch.int32)
    as_tensor, columns = torch.from_numpy(queries), torch.from_numpy(database).T

    def products(rows: slice) -> np.ndarray:
        block = as_tensor[rows]
        with use_torch_threads(1):  # pairs of photos are matched in as many as there are
            found: np.ndarray = torch._int_mm(block, columns, out=buffer[: len(block)]).numpy()
        return found

    return products
