"""Pair selection: exhaustive, sequential, by retrieval, or from a user's file."""

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

EXHAUSTIVE_UP_TO = 20  # photos; beyond their 190 pairs, matching costs more than retrieval
NEIGHBOURS = 10
MAX_LINE_LENGTH = 16_384  # characters of two paths
STRATEGIES = ("auto", "retrieval", "sequential", "all")
LINE_FORMAT = "two image names a line, separated by a space, tab or comma"
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class PairSelection:
    """`pairs` of photo indices (i < j), sorted, and the `strategy` that selected them."""

    pairs: Pairs
    strategy: str


def select_pairs(
    strategy: str, images: Sequence[Path], neighbours: int, ordered: bool, descriptors: Callable[[], np.ndarray]
) -> PairSelection:
    """The pairs of these photos by a `strategy`: one of STRATEGIES, or a pairs file.

    `descriptors` gives the global descriptors, unit rows (N, D); it is called only where they are needed. `ordered`:
    the photos are consecutive, as a video's frames are.
    """
    count = len(images)
    if strategy == "all" or (strategy == "auto" and count <= EXHAUSTIVE_UP_TO):
        return PairSelection(exhaustive_pairs(count), "all")
    if strategy == "sequential":
        return PairSelection(sequential_pairs(count, neighbours), "sequential")
    if strategy not in STRATEGIES:
        return PairSelection(read_pairs(strategy, images), f"from {strategy}")
    pairs = retrieval_pairs(descriptors(), neighbours)
    if strategy == "auto" and ordered:
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
    """Each photo with the `neighbours` most similar ones by global descriptor, unit rows (N, D), and the most similar
    pairs that connect the graph: at most N * (neighbours + 1) pairs."""
    rows = subtract_mean(descriptors) if len(descriptors) > 2 else descriptors
    indices, _ = nearest_neighbours(rows, neighbours)
    first = np.repeat(np.arange(len(rows)), indices.shape[1])
    found = np.unique(np.sort(np.stack([first, indices.reshape(-1)], axis=1), axis=1), axis=0)
    return sorted({*map(tuple, found.tolist()), *_connecting_pairs(rows, found)})


def _connecting_pairs(rows: np.ndarray, pairs: np.ndarray) -> Pairs:
    """Pairs that connect the components of `pairs` (M, 2), by Borůvka's algorithm: in each round, every component is
    connected to the photo outside that is most similar to one of its own."""
    count = len(rows)
    added: Pairs = []
    while True:
        edges = np.concatenate([pairs.reshape(-1, 2), np.array(added, dtype=np.int64).reshape(-1, 2)])
        graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
        components, label = connected_components(graph, directed=False)
        if components <= 1:
            return added
        similarity = np.full(count, -np.inf)
        nearest = np.zeros(count, np.int64)
        for start in range(0, count, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            cosine = np.where(label[block, None] != label[None], rows[block] @ rows.T, -np.inf)
            nearest[block] = cosine.argmax(axis=1)
            similarity[block] = cosine.max(axis=1)
        for component in range(components):
            members = np.flatnonzero(label == component)
            one = int(members[similarity[members].argmax()])
            pair = (min(one, int(nearest[one])), max(one, int(nearest[one])))
            if pair not in added:
                added.append(pair)


def check_pairs(strategy: str, images: Sequence[Path]) -> None:
    """UserError for a pairs file that cannot be used."""
    if strategy not in STRATEGIES:
        read_pairs(strategy, images)


def read_pairs(path: str | Path, images: Sequence[Path]) -> Pairs:
    """The pairs of a text file, sorted, each once; empty lines and # comments are skipped.

    A name is a photo's path, or the end of it. UserError (with the line) for a name of no photo or of several, and for
    a pair of one photo.
    """
    path = Path(path).expanduser()
    try:
        lines = read_text(path, "a pairs file", LINES_LIMIT_BYTES).splitlines()
    except UserError as error:
        raise UserError(
            f"cannot read the pairs file {path}: {error}; --pairs takes {', '.join(STRATEGIES)}, or a file with "
            f"{LINE_FORMAT}"
        ) from error
    photos_of = _path_suffixes(images)
    pairs = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            one, two = sorted(_pair_of(text, photos_of, f"{path}, line {number}"))
            pairs.add((one, two))
    if not pairs:
        raise UserError(f"the pairs file {path} names no pair; it needs {LINE_FORMAT}")
    return sorted(pairs)


def _pair_of(text: str, photos_of: dict[str, list[int]], where: str) -> tuple[int, int]:
    if len(text) > MAX_LINE_LENGTH:
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
    known = [names for names in splits if all(name in photos_of for name in names)]
    if not known:
        unknown = next((name for name in splits[0] if name not in photos_of), splits[0][0])
        raise UserError(
            f"{where}: {quoted(unknown)} is none of the photos; name them as they are given, or by their file name"
        )
    for name in known[0]:
        if len(photos_of[name]) > 1:
            raise UserError(
                f"{where}: {quoted(name)} could be {len(photos_of[name])} of the photos; name more of its path"
            )
    one, two = (photos_of[name][0] for name in known[0])
    if one == two:
        raise UserError(f"{where}: {quoted(known[0][0])} is paired with itself; name two photos")
    return one, two


def _path_suffixes(images: Sequence[Path]) -> dict[str, list[int]]:
    """Every suffix of every photo's path -> the photos that have it."""
    photos_of: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        parts = image.absolute().parts
        names = {str(Path(*parts[start:])) for start in range(len(parts))} | {str(image)}
        for name in names:
            photos_of.setdefault(name, []).append(index)
    return photos_of
