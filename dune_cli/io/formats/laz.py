"""LAZ: LAS, compressed without loss by lazrs."""

from __future__ import annotations

from pathlib import Path

from dune_cli.io.formats import SceneData
from dune_cli.io.formats.las import write_las

CONTENT = ("points",)
PACKAGES = ("laspy", "lazrs")


def write_scene(path: Path, scene: SceneData) -> list[str]:
    """The points, as in LAS."""
    return write_las(path, scene, compress=True)
