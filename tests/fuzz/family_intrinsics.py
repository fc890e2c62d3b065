"""Intrinsics files and what stands in their place on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dune_cli.io.intrinsics import resolve_intrinsics
from dune_cli.io.photos import PhotoInfo
from fuzz.harness import Sample

PHOTOS = [PhotoInfo(Path(f"photos/{name}.jpg"), 640, 480, "0" * 64, None) for name in "abc"]


def samples(folder: Path) -> Sequence[Sample]:
    K = [[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]]
    table = {f"photos/{name}.jpg": K for name in "abc"}
    words = b"500,510,319.5,239.5;500,500,320,240;400.25,400,300,200"
    return [
        Sample({"k.json": json.dumps(table).encode()}, lambda case: _resolved(str(case / "k.json")), _are_cameras),
        Sample({"words.txt": words}, lambda case: _resolved(_text(case / "words.txt")), _are_cameras),
    ]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")  # as a command line gives it


def _resolved(intrinsics: str) -> list[tuple[np.ndarray, str]]:
    return resolve_intrinsics(PHOTOS, intrinsics, None)


def _are_cameras(found: list[tuple[np.ndarray, str]]) -> None:
    assert len(found) == 3
    assert any(source == "given" for _, source in found)  # a damaged name leaves its photo to the default
    for K, source in found:
        assert (
            source in ("given", "default")
            and K.shape == (3, 3)
            and np.isfinite(K).all()
            and np.array_equal(K[2], (0, 0, 1))
        )
        assert 20 < K[0, 0] < 1e8 and 20 < K[1, 1] < 1e8 and abs(K[0, 1]) < 1e-3 * K[0, 0]
        assert np.abs(K[:2, 2]).max() < 1e8
