"""Which photos are compared: the ways to choose, graphs that hang together, a user's list and what is wrong in it."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli.errors import UserError
from dune_cli.sfm import pairs as pairing

IMAGES = [Path("/data/left/a.jpg"), Path("/data/right/a.jpg"), Path("/data/b c.jpg"), Path("/data/d.jpg")]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def groups(count: int, pairs: pairing.Pairs) -> int:
    edges = np.array(pairs).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[0]


def well_formed(count: int, pairs: pairing.Pairs) -> bool:
    return pairs == sorted(set(pairs)) and all(0 <= i < j < count for i, j in pairs)


def no_descriptors() -> np.ndarray:
    raise AssertionError("they are not needed")


def test_every_pair_and_the_ones_that_follow() -> None:
    assert pairing.exhaustive_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    pairs = pairing.sequential_pairs(100, 6)
    assert well_formed(100, pairs) and groups(100, pairs) == 1
    assert sorted({j - i for i, j in pairs}) == [1, 2, 3, 4, 8, 16, 32]
    assert pairing.sequential_pairs(2, 1) == [(0, 1)] and pairing.sequential_pairs(1) == []


def test_retrieval_finds_the_alike_and_joins_the_groups() -> None:
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((6, 32)))
    rows = unit(np.repeat(centres, 12, axis=0) + 0.05 * rng.standard_normal((72, 32)))
    pairs = pairing.retrieval_pairs(rows, 5)
    assert well_formed(72, pairs) and groups(72, pairs) == 1
    inside = sum(i // 12 == j // 12 for i, j in pairs)
    assert len(pairs) - inside == 5  # a tree of the six groups
    assert len(pairs) <= 72 * 6
    assert pairs == pairing.retrieval_pairs(rows, 5)
    assert pairing.retrieval_pairs(rows[:2], 5) == [(0, 1)]
    assert groups(9, pairing.retrieval_pairs(np.zeros((9, 4), np.float32), 2)) == 1  # photos without any keypoint


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_pairs_of_a_large_graph(count: int) -> None:
    """Made-up descriptors along a walk through 200 places that do not know each other: pairs grow as N k."""
    rng = np.random.default_rng(1)
    places = np.repeat(rng.standard_normal((200, 192)), count // 200, axis=0)
    rows = unit(places + 0.7 * rng.standard_normal((count, 192)))
    start = time.process_time()
    pairs = pairing.retrieval_pairs(rows, 20)
    seconds = time.process_time() - start
    assert groups(count, pairs) == 1 and 10 * count <= len(pairs) <= 21 * count
    tracemalloc.start()
    pairing.retrieval_pairs(rows[:1000], 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{count} photos: {len(pairs)} pairs in {seconds:.1f} s")
    assert seconds < 60 and peak < 100e6


def test_the_plan_of_auto_depends_on_how_many_there_are() -> None:
    few, many = [Path(f"{i}.png") for i in range(20)], [Path(f"{i}.png") for i in range(60)]
    rows = unit(np.random.default_rng(2).standard_normal((60, 16)))
    assert pairing.select_pairs("auto", few, 10, False, no_descriptors).strategy == "all"
    assert len(pairing.select_pairs("auto", few, 10, False, no_descriptors).pairs) == 190
    alike = pairing.select_pairs("auto", many, 10, False, lambda: rows)
    assert alike.strategy == "retrieval" and len(alike.pairs) <= 660
    film = pairing.select_pairs("auto", many, 10, True, lambda: rows)
    assert film.strategy == "retrieval and sequential" and set(film.pairs) >= set(pairing.sequential_pairs(60, 10))
    assert pairing.select_pairs("sequential", many, 4, False, no_descriptors).pairs == pairing.sequential_pairs(60, 4)
    assert pairing.select_pairs("all", many, 4, False, no_descriptors).pairs == pairing.exhaustive_pairs(60)


def test_the_largest_keypoints_tell_which_photos_overlap() -> None:
    """Photos along a walk: neighbours share half of their keypoints, with noise; one photo shares none."""
    rng = np.random.default_rng(3)
    world = rng.standard_normal((40 * 31, 64))
    photos = [
        unit(world[40 * i : 40 * (i + 2)] + 0.3 * rng.standard_normal((80, 64))).astype(np.float32) for i in range(30)
    ]
    photos[17] = unit(rng.standard_normal((80, 64))).astype(np.float32)
    photos[20] = photos[20][:1]
    counts = pairing.preemptive_match_counts(photos)
    np.testing.assert_array_equal(counts, counts.T)
    assert not np.diag(counts).any() and not counts[20].any()
    np.testing.assert_array_equal(
        counts[2], pairing.preemptive_match_counts([p[rng.permutation(len(p))] for p in photos])[2]
    )
    pairs = pairing.matching_pairs(counts, 2)
    kept = [i for i in range(29) if not {i, i + 1} & {17, 20}]
    assert {(i, i + 1) for i in kept} <= set(pairs) and len(pairs) <= 30 * 3
    assert groups(30, pairs) == 1
    plan = pairing.select_pairs("auto", [Path(f"{i}.png") for i in range(30)], 2, False, no_descriptors, lambda: counts)
    assert plan.pairs == pairs and plan.strategy == "the largest keypoints"


def test_of_equal_counts_the_closer_photos_are_paired() -> None:
    assert pairing.matching_pairs(np.zeros((5, 5), np.int64), 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_file_of_pairs(tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(
        "# mine\n\nleft/a.jpg right/a.jpg\nd.jpg\t/data/b c.jpg  # late\nb c.jpg, left/a.jpg\nb c.jpg d.jpg\n"
    )
    assert pairing.read_pairs(file, IMAGES) == [(0, 1), (0, 2), (2, 3)]
    assert pairing.select_pairs(str(file), IMAGES, 9, False, no_descriptors).strategy == f"from {file}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left/a.jpg\n", r"line 1: 'left/a.jpg' is no pair"),
        ("\nleft/a.jpg e.jpg\n", r"line 2: 'e.jpg' is none of the photos"),
        ("a.jpg d.jpg\n", r"line 1: 'a.jpg' could be 2 of the photos"),
        ("d.jpg d.jpg\n", r"line 1: 'd.jpg' is paired with itself"),
        ("# nothing\n", r"names no pair"),
    ],
)
def test_what_is_wrong_in_a_file_of_pairs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        pairing.read_pairs(tmp_path / "pairs.txt", IMAGES)


def test_files_of_pairs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the pairs file .*absent.*auto, retrieval, sequential, all, or a"):
        pairing.check_pairs(str(tmp_path / "absent"), IMAGES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        pairing.check_pairs(str(tmp_path / "binary"), IMAGES)
    pairing.check_pairs("retrieval", IMAGES)
