"""Pair selection: exhaustive, sequential, by the matches of the largest keypoints, by retrieval, or from a user's
file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry.rigs import NO_RIGS, Rigs
from dune_cli.io.safe_read import LINES_LIMIT_BYTES, forward_slashes, quoted, read_text
from dune_cli.sfm.retrieval import BLOCK_ROWS, nearest_neighbours, subtract_mean

EXHAUSTIVE_UP_TO = 20  # photos; beyond their 190 pairs, matching costs more than retrieval
NEIGHBOURS = 10
LARGEST = 100, 300  # keypoints of a photo whose matches choose pairs: at least, at most
LARGEST_PAIRS = 10_000  # of photos, up to which the most are compared
PREEMPTIVE_UP_TO = 2000  # photos; beyond, global descriptors cost less
PREEMPTIVE_RATIO = 0.85  # of the distances to the nearest and second nearest descriptor
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
    strategy: str,
    images: Sequence[Path],
    neighbours: int,
    ordered: bool,
    descriptors: Callable[[], np.ndarray],
    match_counts: Callable[[], np.ndarray] | None = None,
    rigs: Rigs = NO_RIGS,
) -> PairSelection:
    """The pairs of these photos by a `strategy`: one of STRATEGIES, or a pairs file.

    `descriptors` gives the global descriptors, unit rows (N, D), and `match_counts` the `preemptive_match_counts` (N,
    N), with which auto needs no descriptors; each is called only where it is needed. `ordered`: the photos are
    consecutive, as a video's frames are. Photos of one frame and centre of the `rigs` are not paired, and frames of
    rigs are consecutive, not their photos.
    """
    count = len(images)

    def consecutive() -> Pairs:
        moments = rigs.moments(count)
        frames = sequential_pairs(len(moments), neighbours)
        return sorted({(min(i, j), max(i, j)) for one, two in frames for i in moments[one] for j in moments[two]})

    if strategy == "all" or (strategy == "auto" and count <= EXHAUSTIVE_UP_TO):
        return PairSelection(rigs.apart(exhaustive_pairs(count)), "all")
    if strategy == "sequential":
        return PairSelection(consecutive(), "sequential")
    if strategy not in STRATEGIES:
        return PairSelection(read_pairs(strategy, images), f"from {strategy}")
    if strategy == "auto" and match_counts is not None:
        pairs, name = matching_pairs(match_counts(), neighbours), "the largest keypoints"
    else:
        pairs, name = retrieval_pairs(descriptors(), neighbours), "retrieval"
    pairs = rigs.apart(pairs)
    if strategy == "auto" and ordered:
        return PairSelection(sorted({*pairs, *consecutive()}), f"{name} and sequential")
    return PairSelection(pairs, name)


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
    return sorted(
        {*map(tuple, found.tolist()), *_connecting_pairs(lambda block: rows[block] @ rows.T, len(rows), found)}
    )


def preemptive_match_counts(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """(N, N) int64, symmetric: how many of the largest keypoints of two photos are mutual nearest neighbours that pass
    the ratio test. `descriptors`: of each photo unit rows (K, C) float32, those of the largest keypoints first.

    Large keypoints match over the widest changes of scale, and a few hundred of them tell which photos overlap (C. Wu,
    "Towards linear-time incremental structure from motion", 3DV 2013, section 2). Of many photos fewer are compared.
    """
    count, most = len(descriptors), largest_keypoints(len(descriptors))
    largest = [np.ascontiguousarray(rows[:most], np.float32) for rows in descriptors]
    counts = np.zeros((count, count), np.int64)
    for i in range(count):
        for j in range(i + 1, count):
            counts[i, j] = counts[j, i] = _mutual_matches(largest[i], largest[j])
    return counts


def largest_keypoints(count: int) -> int:
    """How many keypoints of each of `count` photos are compared to choose pairs."""
    pairs = max(count * (count - 1) // 2, 1)
    return int(np.clip(LARGEST[1] * np.sqrt(LARGEST_PAIRS / pairs), *LARGEST))


def _mutual_matches(rows1: np.ndarray, rows2: np.ndarray) -> int:
    if min(len(rows1), len(rows2)) < 2:
        return 0
    cosine = rows1 @ rows2.T
    nearest = cosine.argmax(axis=1)
    own = np.flatnonzero(cosine.argmax(axis=0)[nearest] == np.arange(len(rows1)))
    mutual = cosine[own]
    best = np.arange(len(own)), nearest[own]
    first = mutual[best]
    mutual[best] = -np.inf
    second = mutual.max(axis=1, initial=-1.0)
    return int(np.count_nonzero(1 - first < PREEMPTIVE_RATIO**2 * (1 - second)))


def matching_pairs(match_counts: np.ndarray, neighbours: int = NEIGHBOURS) -> Pairs:
    """Each photo with the `neighbours` that it has most matches with, and the pairs with most matches that connect the
    graph. Of equal counts (N, N), as chance gives them, those of photos with closer places in the list come first."""
    count = len(match_counts)
    place = np.arange(count)
    similarity = match_counts - np.abs(place[:, None] - place) / count
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(neighbours, count - 1)]
    found = np.sort(np.stack([np.repeat(place, nearest.shape[1]), nearest.reshape(-1)], axis=1), axis=1)
    found = np.unique(found, axis=0)
    return sorted({*map(tuple, found.tolist()), *_connecting_pairs(lambda block: similarity[block], count, found)})


def _connecting_pairs(similarity_of: Callable[[slice], np.ndarray], count: int, pairs: np.ndarray) -> Pairs:
    """Pairs that connect the components of `pairs` (M, 2), by Borůvka's algorithm: in each round, every component is
    connected to the photo outside that is most similar to one of its own. `similarity_of` rows: (B, count)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

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
            cosine = np.where(label[block, None] != label[None], similarity_of(block), -np.inf)
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
