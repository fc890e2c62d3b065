"""Point clouds as PLY."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.formats.ply import read_ply, write_ply
from fuzz.harness import Sample


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(9, 3)), rng.integers(0, 256, (9, 3)).astype(np.uint8)
    write_ply(folder / "full.ply", points, colors, rng.random(9), points)
    write_ply(folder / "bare.ply", points)
    found = []
    for name in ("full.ply", "bare.ply"):
        whole = (folder / name).read_bytes()
        head = whole[: whole.index(b"end_header")]
        for kind in ("bytes", "ply"):
            files = {"c.ply": whole} if kind == "bytes" else {"head.txt": head, "body": whole[len(head) :]}
            found.append(Sample(files, _read, _is_cloud))
    return found


def _read(case: Path) -> dict[str, np.ndarray]:
    if (case / "head.txt").exists():  # damaged as text
        (case / "c.ply").write_bytes((case / "head.txt").read_bytes() + (case / "body").read_bytes())
    return read_ply(case / "c.ply")


def _is_cloud(table: dict[str, np.ndarray]) -> None:
    assert table and len({len(values) for values in table.values()}) == 1
    assert all(values.ndim == 1 and values.dtype.kind in "iuf" for values in table.values())
    assert all(np.isfinite(table[axis]).all() for axis in "xyz" if axis in table)
