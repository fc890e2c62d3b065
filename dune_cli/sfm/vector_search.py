"""The most similar of many vectors, exactly: blocks of rows against the queries, whatever the number of rows."""

from __future__ import annotations

import numpy as np

from dune_cli import optional
from dune_cli.errors import UserError

ENGINES = ("numpy", "faiss")
BLOCK_ROWS = 16_384  # (16384, 256) float32: 16 MiB
QUERY_ROWS = 256
LARGEST_COSINE = 1.001  # of vectors of unit length in float32


def most_similar(
    queries: np.ndarray, vectors: np.ndarray, k: int, engine: str = "numpy"
) -> tuple[np.ndarray, np.ndarray]:
    """For each of the unit rows `queries` (Q, D) the k most similar of the unit rows `vectors` (N, D), which may be
    mapped to memory: row numbers int64 and cosines float32, (Q, min(k, N)), best first; ties in the order of the rows.

    engine: numpy or faiss; both compare every row, and faiss gives any of equal rows at the k-th place. UserError for
    vectors that are not of unit length or not finite, PackageMissing for faiss where it is not installed.
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries (Q, D) and vectors (N, D) are needed, got {queries.shape} and {vectors.shape}")
    k = min(k, len(vectors))
    found = [
        _search(queries[start : start + QUERY_ROWS], vectors, k, engine) for start in range(0, len(queries), QUERY_ROWS)
    ]
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([cosines for _, cosines in found])


def _search(queries: np.ndarray, vectors: np.ndarray, k: int, engine: str) -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((len(queries), 0), np.int64)
    cosines = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = np.asarray(vectors[start : start + BLOCK_ROWS])
        if engine == "faiss":
            more_rows, more = _faiss_best(queries, block, k)
        else:
            worst = cosines.min(axis=1) if cosines.shape[1] == k else None
            more_rows, more = _numpy_best(queries, block, k, worst)
        rows = np.concatenate([rows, more_rows + start], axis=1)
        cosines = np.concatenate([cosines, more], axis=1)
        keep = _first(cosines, k)
        rows, cosines = (np.take_along_axis(part, keep, axis=1) for part in (rows, cosines))
    order = np.lexsort((rows, -cosines), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _numpy_best(
    queries: np.ndarray, block: np.ndarray, k: int, worst: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of a block or, where k better rows are known, all that exceed the `worst` (Q,) of these; filled
    up with cosines of -inf."""
    with np.errstate(all="ignore"):  # damaged vectors
        cosines = queries @ block.T
    if not np.abs(cosines).max() <= LARGEST_COSINE:  # also where one is NaN
        raise _not_unit()
    if worst is None:
        rows = _first(cosines, k)
        return rows, np.take_along_axis(cosines, rows, axis=1)
    better = cosines > worst[:, None]
    counts = better.sum(axis=1)
    at, columns = np.nonzero(better)
    slots = np.arange(len(at)) - (np.cumsum(counts) - counts)[at]
    rows = np.zeros((len(queries), counts.max()), np.int64)
    found = np.full(rows.shape, -np.inf, np.float32)
    rows[at, slots], found[at, slots] = columns, cosines[at, columns]
    return rows, found


def _faiss_best(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    faiss = optional.import_faiss("--engine faiss")
    with np.errstate(all="ignore"):  # damaged vectors
        squares = np.einsum("nd,nd->n", block, block)
    if not squares.max() <= LARGEST_COSINE**2:
        raise _not_unit()
    ours, theirs = (np.ascontiguousarray(part, np.float32) for part in (queries, block))
    cosines, rows = faiss.knn(ours, theirs, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
    order = np.argsort(rows, axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _first(cosines: np.ndarray, k: int) -> np.ndarray:
    """(Q, min(k, N)) columns of the k largest of each row, in rising order; of equal ones those that come first."""
    if k >= cosines.shape[1]:
        return np.tile(np.arange(cosines.shape[1]), (len(cosines), 1))
    kth = -np.partition(-cosines, k - 1, axis=1)[:, k - 1 : k]
    above, equal = cosines > kth, cosines == kth
    wanted = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    return np.nonzero(wanted)[1].reshape(len(cosines), k)


def _not_unit() -> UserError:
    return UserError(
        "the index is damaged: it holds vectors that are not finite or not of unit length; make it anew: "
        "dune index ... --overwrite"
    )
