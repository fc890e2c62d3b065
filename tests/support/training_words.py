"""The words of a small `dune distill`."""

from __future__ import annotations

from pathlib import Path

SMALL = ("--student", "vit:64x2", "--size", 56, "--batch-size", 6, "--steps", 3, "--log-every", 1, "--dtype", "float32")


def words(teachers: str, data: Path | list[str], output: Path, *arguments: object) -> list[str]:
    """`distill` and its arguments; later ones override the small settings."""
    sources = [word for source in (data if isinstance(data, list) else [data]) for word in ("--data", source)]
    return [str(word) for word in ("distill", "--teachers", teachers, *sources, "-o", output, *SMALL, *arguments)]
