"""What reconstruct and reloc keep between runs: it is as it was written, or computed anew with a note."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli.errors import UserError
from dune_cli.io.cache import Layout, WorkFolder
from dune_cli.io.safe_read import read_npz
from dune_cli.matchers.matcher import FeatureMatcher
from dune_cli.sfm.landmarks import POINTS_LAYOUT
from dune_cli.sfm.matching import INDEX_LAYOUT, PIXEL_LAYOUT
from dune_cli.tasks.reconstruct.pairwise_pointmaps import TOKENS_LAYOUT
from fuzz.harness import Sample

Door = tuple[Callable[[Path], Any], Callable[[Any], None]]
KEY = "0123456789abcdef" * 2


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    layouts: dict[str, Layout] = {
        "features": FeatureMatcher.packed_layout or {},
        "matches": INDEX_LAYOUT,
        "dense matches": PIXEL_LAYOUT,
        "points": POINTS_LAYOUT,
        "two-view tokens": TOKENS_LAYOUT,
    }
    kinds = {kind: (_made(layout, rng), layout) for kind, layout in layouts.items()}
    found = []
    for kind, (arrays, layout) in kinds.items():
        WorkFolder(folder).write(kind, KEY, arrays)
        file = next((folder / kind).rglob("*.safetensors"))
        found.append(Sample({str(file.relative_to(folder)): file.read_bytes()}, *_as_written(kind, arrays, layout)))
        npz = io.BytesIO()
        np.savez(npz, **arrays)
        found.append(Sample({"arrays.npz": npz.getvalue()}, *_of_the_layout(kind, layout)))
    return found


def _made(layout: Layout, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of a layout, whatever it is: each letter of the shapes a length of its own."""
    letters = sorted({side for _, shape in layout.values() for side in shape if isinstance(side, str)})
    types = {"f": np.float32, "i": np.int64, "u": np.uint8}
    return {
        name: (9 * rng.random([letters.index(n) + 4 if isinstance(n, str) else n for n in shape])).astype(
            types[kinds[0].lower()]
        )
        for name, (kinds, shape) in layout.items()
    }


def _as_written(kind: str, arrays: dict[str, np.ndarray], layout: Layout) -> Door:
    def read(case: Path) -> dict[str, np.ndarray]:
        work = WorkFolder(case)
        found = work.read(kind, KEY, layout)
        if found is None:
            again = dict(work.arrays(kind, lambda: KEY, lambda: arrays, layout))
            assert work.counts[kind] == 1 and work.read(kind, KEY, layout) is not None and again is not None
            raise UserError("it is computed again")
        return found

    def accept(found: dict[str, np.ndarray]) -> None:
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)

    return read, accept


def _of_the_layout(kind: str, layout: Layout) -> Door:
    """Arrays that a program has written whole, with the right checksum, and that do not fit each other."""

    def read(case: Path) -> dict[str, np.ndarray]:
        arrays = read_npz(case / "arrays.npz", "arrays", limit_bytes=1 << 24)
        if any(array.dtype.kind not in "iufb" or array.dtype.itemsize > 8 for array in arrays.values()):
            raise UserError("no such arrays can be kept")
        WorkFolder(case).write(
            kind, KEY, {name: np.asarray(a, a.dtype.newbyteorder("=")) for name, a in arrays.items()}
        )
        found = WorkFolder(case).read(kind, KEY, layout)
        if found is None:
            raise UserError("it is computed again")
        return found

    def accept(found: dict[str, np.ndarray]) -> None:
        lengths: dict[str, int] = {}
        for name, (_, shape) in layout.items():
            assert len(found[name].shape) == len(shape) and np.isfinite(found[name]).all()
            for side, length in zip(shape, found[name].shape):
                assert length == (lengths.setdefault(side, length) if isinstance(side, str) else side)

    return read, accept
