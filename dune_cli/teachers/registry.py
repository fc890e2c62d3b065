"""Teachers by name: `NAME`, `NAME=FILE`, or `timm:MODEL`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

import dune_cli.teachers
from dune_cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from dune_cli.teachers.teacher import Teacher

# what a teacher without a file of its own takes; it is looked for before torch is imported
DEFAULT_WEIGHTS = {
    "aliked": "aliked-n16",
    "dinov2": "dinov2-vitl14-reg",
    "dune": "dune-vitb14-448",
    "efficientnet-lite2": "efficientnet-lite2",
    "fastdepth": "fastdepth",
    "mast3r": "mast3r-vitl",
    "mosaic": "mosaic",
    "multihmr": "multihmr-672-l",
    "people": "people-teacher",
}
_NOT_TEACHERS = ("registry", "teacher")


def names() -> list[str]:
    """Every teacher that has a file here."""
    modules = (module.name for module in pkgutil.iter_modules(dune_cli.teachers.__path__))
    return sorted(name.replace("_", "-") for name in modules if name not in _NOT_TEACHERS and name[0] != "_")


def weights_of(text: str) -> str | None:
    """The file or registry name that a teacher as in `load_teacher` is loaded from; None where nothing is needed.

    UserError (listing the names) for an unknown one.
    """
    name, argument = _parsed(text)
    return None if name == "timm" else argument or DEFAULT_WEIGHTS.get(name)


def load_teacher(text: str, device: torch.device, dtype: torch.dtype | None = None) -> Teacher:
    """A frozen teacher from `NAME`, `NAME=FILE` or `timm:MODEL`; `dtype` is that of its trunk's matrix products.

    Raises UserError (listing the names) for an unknown one, WeightsMissing, PackageMissing or CheckpointError.
    """
    import torch

    name, argument = _parsed(text)
    module = importlib.import_module(f"dune_cli.teachers.{name.replace('-', '_')}")
    return module.load(argument, device, torch.float32 if dtype is None else dtype).eval().requires_grad_(False)


def _parsed(text: str) -> tuple[str, str]:
    name, _, argument = text.partition("=")
    if name.startswith("timm:"):
        name, argument = "timm", text.removeprefix("timm:")
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown teacher {name!r}; known: {', '.join(names())} (timm as timm:MODEL){hint}")
    return name, argument
