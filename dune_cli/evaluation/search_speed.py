"""Speed of the exact search of `dune search` in made-up vectors, against sorting all cosines in float64."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dune_cli import runtime
from dune_cli.evaluation.speed import Stopwatch
from dune_cli.io.outputs import scratch_folder
from dune_cli.sfm.vector_search import most_similar

COUNT, DIMENSION, TOP = 100_000, 256, 10  # the width of dune-mini
CHECKED = 8
TIE = 1e-6  # cosines nearer to each other than this may change places in float32
GOAL_SECONDS = 0.1


@dataclass(frozen=True)
class EngineSpeed:
    """An engine: seconds of a search for `queries` at once. identical: whether hits are those of float64, but for
    ties."""

    engine: str
    queries: int
    seconds: float
    identical: bool


@dataclass(frozen=True)
class SearchSpeed:
    """Vectors (count, dimension) float32 mapped from a file; the `top` hits of each query."""

    count: int
    dimension: int
    top: int
    threads: int
    clock: str
    engines: tuple[EngineSpeed, ...]


def measure_search(
    count: int = COUNT,
    rounds: int = 3,
    cpu_time: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> SearchSpeed:
    """Times searches for one query and for 32 at once, by each engine that is installed; the fastest round counts."""
    rng = np.random.default_rng(0)
    engines = ["numpy", *(["faiss"] if importlib.util.find_spec("faiss") is not None else [])]
    watch = Stopwatch(torch.device("cpu"), cpu_time)
    rows = []
    with scratch_folder() as folder:
        vectors = _mapped(folder / "vectors.f4", _unit(rng.standard_normal((count, DIMENSION), np.float32)))
        for queries in (1, 32):
            near = vectors[rng.integers(0, count, queries)]
            noise = rng.standard_normal((queries, DIMENSION), np.float32) / DIMENSION**0.5
            batch = _unit(near + noise)
            best: dict[str, float] = {}
            for number in range(rounds + 1):
                report(f"search for {queries} in {count} vectors, round {number} of {rounds}")
                for engine in engines:
                    seconds = watch(lambda engine=engine, batch=batch: most_similar(batch, vectors, TOP, engine))
                    if number:
                        best[engine] = min(seconds, best.get(engine, seconds))
            rows += [EngineSpeed(name, queries, best[name], _identical(batch, vectors, name)) for name in engines]
    return SearchSpeed(count, DIMENSION, TOP, runtime.available_threads(), watch.clock, tuple(rows))


def _mapped(path: Path, vectors: np.ndarray) -> np.ndarray:
    vectors.tofile(path)
    return np.memmap(path, np.float32, "r", shape=vectors.shape)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _identical(queries: np.ndarray, vectors: np.ndarray, engine: str) -> bool:
    """Whether the first CHECKED queries have the hits of sorting all cosines in float64, but for ties."""
    queries = queries[:CHECKED]
    rows, cosines = most_similar(queries, vectors, TOP, engine)
    exact = np.concatenate(
        [queries.astype(np.float64) @ vectors[i : i + 8192].astype(np.float64).T for i in range(0, len(vectors), 8192)],
        axis=1,
    )
    best = -np.sort(-exact, axis=1)[:, :TOP]
    found = np.take_along_axis(exact, rows, axis=1)
    distinct = all(len(set(row)) == len(row) for row in rows.tolist())
    return bool(distinct and np.abs(found - best).max() < TIE and np.abs(cosines - best).max() < TIE)
