"""Which photos are compared with which: all, those next to each other, those that look alike, or a user's list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli.errors import UserError
from dune_cli.io.safe_read import LINES_LIMIT_BYTES, forward_slashes, quoted, read_text
from dune_cli.sfm.retrieval import BLOCK_ROWS, nearest_neighbours, subtract_mean

EXHAUSTIVE_UP_TO = 20  # photos: more pairs than 190 cost more than choosing them
NEIGHBOURS = 10
LONGEST_LINE = 16_384  # characters of two paths
STRATEGIES = ("auto", "retrieval", "sequential", "all")
LINE_FORMAT = "two image names a line, separated by a space, tab or comma"
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class PairSelection:
    """`pairs` of photo indices (i < j), sorted; `strategy` says how they were chosen."""

    pairs: Pairs
    strategy: str


def select_pairs(
    way: str, images: Sequence[Path], neighbours: int, ordered: bool, descriptors: Callable[[], np.ndarray]
) -> PairSelection:
    """The pairs that `way` (one of WAYS, or a file) means for these photos. `descriptors` gives the global ones, unit
    rows (N, D), and is asked only where they are needed; `ordered`: the photos follow one another."""
    count = len(images)
    if way == "all" or (way == "auto" and count <= EXHAUSTIVE_UP_TO):
        return PairSelection(exhaustive_pairs(count), "all")
    if way == "sequential":
        return PairSelection(sequential_pairs(count, neighbours), "sequential")
    if way not in STRATEGIES:
        return PairSelection(read_pairs(way, images), f"from {way}")
    pairs = retrieval_pairs(descriptors(), neighbours)
    if way == "auto" and ordered:
        return PairSelection(sorted({*pairs, *sequential_pairs(count, neighbours)}), "retrieval and sequential")
    return PairSelection(pairs, "retrieval")


def exhaustive_pairs(count: int) -> Pairs:
    """All count * (count - 1) / 2."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def sequential_pairs(count: int, neighbours: int = NEIGHBOURS) -> Pairs:
    """Each photo with the `neighbours` / 2 that follow, and with those 2, 4, 8, ... places on, up to count / 2."""
    steps = set(range(1, max(1, neighbours // 2) + 1))
    step = 2
    while step <= count // 2:
        steps.add(step)
        step *= 2
    return sorted((i, i + step) for step in steps for i in range(count - step))


def retrieval_pairs(descriptors: np.ndarray, neighbours: int = NEIGHBOURS) -> Pairs:
    """Each photo with the `neighbours` most alike by its global descriptor, unit rows (N, D), and the most alike pairs
    that make one graph of it: at most N * (neighbours + 1) pairs."""
    rows = subtract_mean(descriptors) if len(descriptors) > 2 else descriptors
    indices, _ = nearest_neighbours(rows, neighbours)
    first = np.repeat(np.arange(len(rows)), indices.shape[1])
    found = np.unique(np.sort(np.stack([first, indices.reshape(-1)], axis=1), axis=1), axis=0)
    return sorted({*map(tuple, found.tolist()), *_bridges(rows, found)})


def _bridges(rows: np.ndarray, pairs: np.ndarray) -> Pairs:
    """Pairs that join the groups that `pairs` (M, 2) leave apart, by Borůvka's rounds: in each, every group is joined
    to the photo outside that is most like one of its own."""
    count = len(rows)
    added: Pairs = []
    while True:
        edges = np.concatenate([pairs.reshape(-1, 2), np.array(added, dtype=np.int64).reshape(-1, 2)])
        graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
        groups, label = connected_components(graph, directed=False)
        if groups <= 1:
            return added
        best = np.full(count, -np.inf)
        other = np.zeros(count, np.int64)
        for start in range(0, count, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            cosine = np.where(label[block, None] != label[None], rows[block] @ rows.T, -np.inf)
            other[block] = cosine.argmax(axis=1)
            best[block] = cosine.max(axis=1)
        for group in range(groups):
            members = np.flatnonzero(label == group)
            one = int(members[best[members].argmax()])
            pair = (min(one, int(other[one])), max(one, int(other[one])))
            if pair not in added:
                added.append(pair)


def check_pairs(way: str, images: Sequence[Path]) -> None:
    """UserError, before any work, for a pairs file that cannot be used."""
    if way not in STRATEGIES:
        read_pairs(way, images)


def read_pairs(path: str | Path, images: Sequence[Path]) -> Pairs:
    """The pairs that a text file names; empty lines and # comments left out, a pair named twice taken once.

    A name is a photo's path, or the end of it. UserError (with the line) for what names no photo, more than one, or one
    photo twice.
    """
    path = Path(path).expanduser()
    try:
        lines = read_text(path, "a pairs file", LINES_LIMIT_BYTES).splitlines()
    except UserError as error:
        raise UserError(
            f"cannot read the pairs file {path}: {error}; --pairs takes {', '.join(STRATEGIES)}, or a file with "
            f"{LINE_FORMAT}"
        ) from error
    table = _tails(images)
    pairs = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            one, two = sorted(_pair_of(text, table, f"{path}, line {number}"))
            pairs.add((one, two))
    if not pairs:
        raise UserError(f"the pairs file {path} names no pair; it needs {LINE_FORMAT}")
    return sorted(pairs)


def _pair_of(text: str, table: dict[str, list[int]], where: str) -> tuple[int, int]:
    if len(text) > LONGEST_LINE:
        raise UserError(f"{where}: a line of {len(text)} characters is no pair; it needs {LINE_FORMAT}")
    splits = []
    for separator in ("\t", ","):
        if text.count(separator) == 1:
            splits.append([part.strip() for part in text.split(separator)])
    words = text.split(" ")
    splits += [[" ".join(words[:i]).strip(), " ".join(words[i:]).strip()] for i in range(1, len(words))]
    splits = [names for names in splits if all(names)]
    splits += [[forward_slashes(name) for name in names] for names in splits if "\\" in text]
    if not splits:
        raise UserError(f"{where}: {quoted(text)} is no pair; it needs {LINE_FORMAT}")
    known = [names for names in splits if all(name in table for name in names)]
    if not known:
        strange = next((name for name in splits[0] if name not in table), splits[0][0])
        raise UserError(
            f"{where}: {quoted(strange)} is none of the photos; name them as they are given, or by their file name"
        )
    for name in known[0]:
        if len(table[name]) > 1:
            raise UserError(f"{where}: {quoted(name)} could be {len(table[name])} of the photos; name more of its path")
    one, two = (table[name][0] for name in known[0])
    if one == two:
        raise UserError(f"{where}: {quoted(known[0][0])} is paired with itself; name two photos")
    return one, two


def _tails(images: Sequence[Path]) -> dict[str, list[int]]:
    """Every end of every photo's path -> which photos have it."""
    table: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        parts = image.absolute().parts
        names = {str(Path(*parts[start:])) for start in range(len(parts))} | {str(image)}
        for name in names:
            table.setdefault(name, []).append(index)
    return table
