"""The two nearest descriptors: as brute force finds them, and the same by every kernel."""

from __future__ import annotations

import numpy as np
import pytest

from dune_cli.matchers import two_nearest as module
from dune_cli.matchers.two_nearest import two_nearest


def descriptors(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((count, 128)).astype(np.float32) ** 3
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_matches_are_those_of_brute_force() -> None:
    database = descriptors(700, 0)
    noise = np.abs(database[::-1][:300] + 0.02 * np.random.default_rng(1).standard_normal((300, 128)))
    queries = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    cosine = queries.astype(np.float64) @ database.astype(np.float64).T
    order = np.sort(2 - 2 * cosine, axis=1)
    nearest, ratio = two_nearest(queries, database)
    np.testing.assert_array_equal(nearest, cosine.argmax(axis=1))
    np.testing.assert_allclose(ratio, np.sqrt(order[:, 0] / order[:, 1]), rtol=0.02)


@pytest.mark.parametrize("count", [1, 2, 127, 300])
def test_the_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    queries, database = descriptors(count, 2), descriptors(501, 3)
    found = []
    for kernel in (module._numpy_products, module._torch_products):
        monkeypatch.setattr(module, "_products", lambda queries, database, times, by=kernel: by(queries, database))
        found.append(two_nearest(queries, database))
    for by_numpy, by_torch in zip(*found):
        np.testing.assert_array_equal(by_numpy, by_torch)


def test_a_copy_is_its_own_nearest() -> None:
    rows = descriptors(400, 4)
    nearest, ratio = two_nearest(rows, rows)
    np.testing.assert_array_equal(nearest, np.arange(400))
    assert ratio.max() < 0.01


def test_few_descriptors() -> None:
    rows = descriptors(3, 5)
    nearest, ratio = two_nearest(rows, rows[1:2])
    np.testing.assert_array_equal(nearest, 0)
    np.testing.assert_array_equal(ratio, 0)
    np.testing.assert_array_equal(two_nearest(rows, rows[:0])[1], 1)
    assert [len(values) for values in two_nearest(rows[:0], rows)] == [0, 0]
