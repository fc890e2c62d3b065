"""The most similar vectors, as brute force finds them, whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dune_cli.commands import search as command
from dune_cli.errors import UserError
from dune_cli.sfm import vector_search
from dune_cli.sfm.vector_search import ENGINES, most_similar


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_sorting(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def test_the_command_offers_all_engines() -> None:
    assert command.ENGINES == ENGINES


@pytest.mark.parametrize("block", [3, 64, 1000])
@pytest.mark.parametrize("k", [1, 10, 700])
def test_equal_to_sorting_all_cosines(engine: str, block: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_search, "BLOCK_ROWS", block)
    monkeypatch.setattr(vector_search, "QUERY_ROWS", 4)
    vectors = unit_rows(500, 24)
    queries = np.concatenate([vectors[:3], unit_rows(6, 24, seed=1)])
    rows, cosines = most_similar(queries, vectors, k, engine)
    wanted, exact = by_sorting(queries, vectors, k)
    assert rows.shape == (9, min(k, 500)) and rows.dtype == np.int64
    np.testing.assert_allclose(cosines, exact, atol=1e-6)
    assert (rows == wanted).mean() > 0.999  # float32 may swap two that are equal to the last digit
    assert rows[:3, 0].tolist() == [0, 1, 2]


def test_mapped_to_memory_and_larger_than_a_block(engine: str, tmp_path: Path) -> None:
    vectors = unit_rows(40_000, 16)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r", allow_pickle=False)
    rows, cosines = most_similar(vectors[[7, 39_999]], mapped, 20, engine)
    wanted, exact = by_sorting(vectors[[7, 39_999]], vectors, 20)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(cosines, exact, atol=1e-6)


def test_of_equal_vectors_the_first_rows_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_search, "BLOCK_ROWS", 7)
    one, other = np.eye(2, 8, dtype=np.float32)
    vectors = np.stack([other, one] * 20)
    rows, cosines = most_similar(one[None], vectors, 5)
    assert rows.tolist() == [[1, 3, 5, 7, 9]] and cosines.tolist() == [[1.0] * 5]


def test_no_queries_and_wrong_shapes() -> None:
    assert most_similar(np.zeros((0, 4), np.float32), unit_rows(5, 4), 3)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="are needed, got"):
        most_similar(unit_rows(2, 3), unit_rows(5, 4), 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e3])
def test_vectors_that_are_not_of_unit_length_are_refused(engine: str, wrong: float) -> None:
    vectors = unit_rows(50, 8)
    vectors[30, 2] = wrong
    with pytest.raises(UserError, match="not finite or not of unit length"):
        most_similar(vectors[:1], vectors, 3, engine)
