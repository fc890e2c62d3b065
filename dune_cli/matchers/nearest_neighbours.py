"""Reciprocal nearest neighbours of two descriptor maps, exact, in blocks of bounded memory.

The score matrix of two 384x512 maps would take 155 GB. It is computed in blocks that fit into the processor's cache, of
which only each row's maximum is kept (a vectorised reduction). The index of the maximum is searched afterwards in the
block that holds it. Ties go to the lowest index.
"""

from __future__ import annotations

import torch

BLOCK_ROWS = 1024
MAX_BYTES_CPU = 4 << 20  # one block of scores stays in the processor's cache
MAX_BYTES_GPU = 512 << 20


@torch.inference_mode()
def reciprocal_matches(
    desc1: torch.Tensor,
    desc2: torch.Tensor,
    subsample: int = 8,
    max_iterations: int = 10,
    max_bytes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fast reciprocal nearest neighbours by dot product (MASt3R, Leroy et al. 2024, section 3.3).

    docs/models/mast3r.md, "Matching".

    desc1 (H1, W1, C), desc2 (H2, W2, C): descriptors, on one device. Starts from every `subsample`-th pixel of image 1
    (from subsample // 2) and iterates between the images at most `max_iterations` times; a point converges when it
    returns to itself. `subsample=1` gives the full set of mutual nearest neighbours.

    Returns xy1, xy2 (M, 2) int64 pixels (x, y), unique, sorted by y * W1 + x. `max_bytes` bounds one block of scores.
    Raises ValueError for maps that do not fit together.
    """
    if desc1.ndim != 3 or desc2.ndim != 3 or desc1.shape[2] != desc2.shape[2]:
        raise ValueError(f"descriptor maps must be (H, W, C) with one C, not {(*desc1.shape,)} and {(*desc2.shape,)}")
    if subsample < 1 or max_iterations < 1:
        raise ValueError(f"subsample and max_iterations must be at least 1, not {subsample} and {max_iterations}")
    height1, width1, _ = desc1.shape
    width2 = desc2.shape[1]
    flat1, flat2 = _flat(desc1), _flat(desc2)
    if subsample == 1:
        index1, index2 = mutual_nearest(flat1, flat2, max_bytes)
    else:
        offset = subsample // 2
        ys = torch.arange(height1, device=flat1.device)[offset::subsample]
        xs = torch.arange(width1, device=flat1.device)[offset::subsample]
        start = (ys[:, None] * width1 + xs).flatten()
        index1, index2 = _converge(flat1, flat2, start, max_iterations, max_bytes)
    xy1 = torch.stack([index1 % width1, index1.div(width1, rounding_mode="floor")], dim=1)
    xy2 = torch.stack([index2 % width2, index2.div(width2, rounding_mode="floor")], dim=1)
    return xy1, xy2


@torch.inference_mode()
def mutual_nearest(
    desc1: torch.Tensor, desc2: torch.Tensor, max_bytes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All mutual nearest neighbours of desc1 (N1, C) and desc2 (N2, C) by dot product, in one pass over the scores.

    Returns index1 (M,) increasing and index2 (M,), int64.
    """
    desc1, desc2 = _working(desc1), _working(desc2)
    rows, columns = _block_shape(desc1, max_bytes)
    none = torch.empty(0, dtype=torch.int64, device=desc1.device)
    if len(desc1) == 0 or len(desc2) == 0:
        return none, none.clone()
    best2 = torch.full((len(desc2),), -torch.inf, dtype=desc1.dtype, device=desc1.device)
    block2 = torch.zeros(len(desc2), dtype=torch.int64, device=desc1.device)
    nearest1 = []
    for i, piece1 in enumerate(desc1.split(rows)):
        maxima = []
        for j, piece2 in enumerate(desc2.split(columns)):
            scores = piece1 @ piece2.T
            maxima.append(scores.amax(dim=1))
            part = slice(j * columns, j * columns + len(piece2))
            best = scores.amax(dim=0)
            better = best > best2[part]
            best2[part] = torch.where(better, best, best2[part])
            block2[part] = torch.where(better, i, block2[part])
        nearest1.append(_argmax_in_blocks(piece1, desc2, torch.stack(maxima).argmax(dim=0), columns, rows))
    nearest2 = _argmax_in_blocks(desc2, desc1, block2, rows, columns)
    index2 = torch.cat(nearest1)
    index1 = torch.arange(len(desc1), device=desc1.device)
    mutual = nearest2[index2] == index1
    return index1[mutual], index2[mutual]


@torch.inference_mode()
def nearest(queries: torch.Tensor, database: torch.Tensor, max_bytes: int | None = None) -> torch.Tensor:
    """Index (Q,) int64 of the largest dot product of each of queries (Q, C) in database (N, C); N at least 1."""
    queries, database = _working(queries), _working(database)
    rows, columns = _block_shape(queries, max_bytes)
    found = [torch.empty(0, dtype=torch.int64, device=queries.device)]
    for piece in queries.split(rows):
        maxima = [(piece @ part.T).amax(dim=1) for part in database.split(columns)]
        found.append(_argmax_in_blocks(piece, database, torch.stack(maxima).argmax(dim=0), columns, rows))
    return torch.cat(found)


def _converge(
    flat1: torch.Tensor, flat2: torch.Tensor, start: torch.Tensor, max_iterations: int, max_bytes: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    # each neighbour is computed once: paths from different starts soon share their points
    to2 = torch.full((len(flat1),), -1, dtype=torch.int64, device=flat1.device)
    to1 = torch.full((len(flat2),), -1, dtype=torch.int64, device=flat1.device)
    active = start
    converged = []
    for _ in range(max_iterations):
        if len(active) == 0 or len(flat2) == 0:
            break
        _fill_nearest(to2, active, flat1, flat2, max_bytes)
        there = to2[active]
        _fill_nearest(to1, there.unique(), flat2, flat1, max_bytes)
        back = to1[there]
        converged.append(active[back == active])
        active = back[back != active].unique()
    index1 = torch.cat(converged).unique() if converged else start[:0]
    return index1, to2[index1]


def _fill_nearest(
    known: torch.Tensor, wanted: torch.Tensor, source: torch.Tensor, target: torch.Tensor, max_bytes: int | None
) -> None:
    new = wanted[known[wanted] < 0]
    known[new] = nearest(source[new], target, max_bytes)


def _argmax_in_blocks(
    queries: torch.Tensor, database: torch.Tensor, block: torch.Tensor, block_size: int, together: int
) -> torch.Tensor:
    """Index of each query's best database entry, given the block (of `block_size` entries) that holds it."""
    found = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    order = block.argsort(stable=True)
    ids, counts = block[order].unique_consecutive(return_counts=True)
    for i, members in zip(ids.tolist(), order.split(counts.tolist())):
        for some in members.split(together):
            scores = queries[some] @ database[i * block_size : (i + 1) * block_size].T
            found[some] = scores.argmax(dim=1) + i * block_size
    return found


def _block_shape(desc: torch.Tensor, max_bytes: int | None) -> tuple[int, int]:
    if max_bytes is None:
        max_bytes = MAX_BYTES_CPU if desc.device.type == "cpu" else MAX_BYTES_GPU
    scores = max(1, max_bytes // desc.element_size())
    rows = min(BLOCK_ROWS, max(1, int(scores**0.5)))
    return rows, max(1, scores // rows)


def _flat(desc: torch.Tensor) -> torch.Tensor:
    return _working(desc.reshape(-1, desc.shape[2]))


def _working(desc: torch.Tensor) -> torch.Tensor:
    """Float64 stays; everything else is compared in float32."""
    return desc.contiguous() if desc.dtype == torch.float64 else desc.to(torch.float32).contiguous()
