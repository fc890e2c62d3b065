"""Teachers by name: `NAME`, `NAME=FILE`, or `timm:MODEL`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from dune_cli import plugins
from dune_cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from dune_cli.teachers.teacher import Teacher

_PACKAGE = "dune_cli.teachers"


def names() -> list[str]:
    """Every teacher, in alphabetical order."""
    return plugins.names(_PACKAGE, "load")


def weights_of(text: str) -> str | None:
    """The file or registry name that a teacher as in `load_teacher` is loaded from; None where nothing is needed.

    UserError (listing the names) for an unknown one. Imports no teacher.
    """
    name, argument = _parse(text)
    return None if name == "timm" else argument or plugins.constant(_PACKAGE, name, "DEFAULT_WEIGHTS", None)


def load_teacher(text: str, device: torch.device, dtype: torch.dtype | None = None) -> Teacher:
    """A frozen teacher from `NAME`, `NAME=FILE` or `timm:MODEL`; `dtype` is that of its trunk's matrix products.

    Raises UserError (listing the names) for an unknown one, WeightsMissing, PackageMissing or CheckpointError.
    """
    import torch

    name, argument = _parse(text)
    weights = argument or plugins.constant(_PACKAGE, name, "DEFAULT_WEIGHTS", None) or ""
    teacher = plugins.load(_PACKAGE, name).load(weights, device, torch.float32 if dtype is None else dtype)
    return teacher.eval().requires_grad_(False)


def _parse(text: str) -> tuple[str, str]:
    name, _, argument = text.partition("=")
    if name.startswith("timm:"):
        name, argument = "timm", text.removeprefix("timm:")
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown teacher {name!r}; known: {', '.join(known)} (timm as timm:MODEL){hint}")
    return name, argument
