"""What reconstruct and reloc keep between runs: it is as it was written, or computed anew with a note."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Sample

from dune_cli.errors import UserError
from dune_cli.io.cache_files import Layout
from dune_cli.io.safe_read import read_npz
from dune_cli.io.work_folder import WorkFolder
from dune_cli.matchers.base import FeatureMatcher
from dune_cli.tasks.reconstruct.correspondences import INDEX_LAYOUT, PLACE_LAYOUT
from dune_cli.tasks.reconstruct.pair_maps import TOKENS_LAYOUT
from dune_cli.tasks.reloc.map_points import POINTS_LAYOUT

Door = tuple[Callable[[Path], Any], Callable[[Any], None]]
KEY = "0123456789abcdef" * 2


def samples(folder: Path) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (7, 3)).astype(np.uint8)
    kinds: dict[str, tuple[dict[str, np.ndarray], Layout]] = {
        "features": (
            {
                "points": rng.random((7, 2)).astype(np.float32),
                "descriptors": rng.random((7, 4)).astype(np.float16),
                "size": np.array([240, 320]),
                "original_per_pixel": np.ones(2),
            },
            FeatureMatcher.packed_layout or {},
        ),
        "matches": (
            {"1": np.arange(5, dtype=np.uint32), "2": np.arange(5, dtype=np.uint32), "scores": np.ones(5, np.float32)},
            INDEX_LAYOUT,
        ),
        "dense matches": (
            {
                **{side: rng.random((7, 2)) for side in "12"},
                **{f"colors{side}": colours for side in "12"},
                "scores": np.ones(7),
                "sizes": np.ones(2),
            },
            PLACE_LAYOUT,
        ),
        "points": (
            {"pixels": rng.random((6, 2)), "points_world": rng.random((6, 3)), "observations": np.full(6, 3)},
            POINTS_LAYOUT,
        ),
        "two-view tokens": ({"tokens": rng.random((6, 4), np.float32), "grid": np.array([2, 3])}, TOKENS_LAYOUT),
    }
    found = []
    for kind, (arrays, layout) in kinds.items():
        WorkFolder(folder).write(kind, KEY, arrays)
        file = next((folder / kind).rglob("*.safetensors"))
        found.append(Sample({str(file.relative_to(folder)): file.read_bytes()}, *_as_written(kind, arrays, layout)))
        npz = io.BytesIO()
        np.savez(npz, **arrays)
        found.append(Sample({"arrays.npz": npz.getvalue()}, *_of_the_layout(kind, layout)))
    return found


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
