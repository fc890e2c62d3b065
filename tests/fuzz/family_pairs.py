"""Pairs files of `dune reconstruct --pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dune_cli.sfm.pairs import read_pairs
from fuzz.harness import Sample

IMAGES = [Path(f"left/{name}") for name in ("a.jpg", "b c.jpg", "d.jpg")] + [Path("right/a.jpg")]


def samples(folder: Path) -> Sequence[Sample]:
    text = "# two photos a line\nleft/a.jpg b c.jpg\nd.jpg\tright/a.jpg\n\nleft/a.jpg, d.jpg\nb c.jpg d.jpg\n"
    return [Sample({"pairs.txt": text.encode()}, lambda case: read_pairs(case / "pairs.txt", IMAGES), _are_pairs)]


def _are_pairs(pairs: list[tuple[int, int]]) -> None:
    assert pairs and len(set(pairs)) == len(pairs) and all(0 <= one < two < len(IMAGES) for one, two in pairs)
