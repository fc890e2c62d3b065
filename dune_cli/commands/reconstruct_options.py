"""The options of `dune reconstruct` that are for three photos or more, as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click

from dune_cli import console
from dune_cli.commands import options


@dataclass(frozen=True)
class Many:
    """What the user asked for, by the options' names. `retrieval_model` None: the default one, if it is here."""

    fps: float | None = None
    pairs: str = "auto"
    neighbours: int = 10
    retrieval_model: str | None = None
    mapper: str = "incremental"
    poses: str | None = None
    pose_use: str = "fixed"
    dense: bool = True
    quality: str = "medium"
    mesh: str | None = None
    work: str | None = None
    preflight: bool = False

    def say_unused(self) -> None:
        """A note about options that two photos have no use for."""
        ignored = [f.name for f in fields(self) if f.name not in ("fps", "mesh") and getattr(self, f.name) != f.default]
        if ignored:
            words = ", ".join("--no-dense" if name == "dense" else f"--{name.replace('_', '-')}" for name in ignored)
            console.note(f"two photos have no use for {words}")


OPTIONS = [
    options.fps_as("Of a video, the sharpest frame of every 1/N seconds.  [default: 2]"),
    click.option(
        "--pairs",
        default="auto",
        show_default=True,
        metavar="WAY|FILE",
        help="Which photos are compared: all, sequential (with those that follow), retrieval (with those that look "
        "alike), a file with two names a line; auto: all of up to 20 photos, else retrieval.",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        metavar="K",
        help="Photos that each one is compared with (retrieval, sequential).",
    ),
    click.option(
        "--retrieval-model",
        metavar="NAME|FILE",
        help="The encoder that tells which photos look alike.  [default: dune-mini if present, else keypoints do it]",
    ),
    click.option(
        "--mapper",
        type=click.Choice(["incremental", "global"]),
        default="incremental",
        show_default=True,
        help="pycolmap's structure from motion.",
    ),
    click.option(
        "--poses", metavar="FILE|DIR", help="Known cameras: JSON, COLMAP model, TUM or KITTI trajectory (matches)."
    ),
    click.option(
        "--pose-use",
        type=click.Choice(["fixed", "prior"]),
        default="fixed",
        show_default=True,
        help="Keep known poses as they are, or take their positions as a start that may move.",
    ),
    click.option("--dense/--no-dense", default=True, show_default=True, help="Depth for every view and a dense cloud."),
    click.option(
        "--quality",
        type=click.Choice(["low", "medium", "high"]),
        default="medium",
        show_default=True,
        help="Of the dense points: size of the depth maps and time.",
    ),
    click.option(
        "--mesh",
        type=click.Choice(["tsdf", "poisson"]),
        help="Make one surface of the views, in a .ply, too.  [for .obj and .glb: tsdf]",
    ),
    click.option(
        "--work", metavar="DIR", help="Folder that keeps what was computed.  [default: the output's name with .work]"
    ),
    click.option("--preflight", is_flag=True, help="Time a few photos, print pairs, memory and minutes, and stop."),
]


def many_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the function gets them as one `many`."""
    names = [field.name for field in fields(Many)]

    @functools.wraps(function)
    def gather(*arguments: Any, **given: Any) -> Any:
        own = {name: given.pop(name) for name in names}
        return function(*arguments, many=Many(**own), **given)

    for option in reversed(OPTIONS):
        gather = option(gather)
    return gather
