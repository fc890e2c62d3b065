"""Teachers by name: `NAME`, `NAME=FILE`, or `timm:MODEL`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

import torch

import dune_cli.teachers
from dune_cli.errors import UserError
from dune_cli.teachers.base import Teacher

_NOT_TEACHERS = ("base", "load")


def names() -> list[str]:
    """Every teacher that has a file here."""
    modules = (module.name for module in pkgutil.iter_modules(dune_cli.teachers.__path__))
    return sorted(name.replace("_", "-") for name in modules if name not in _NOT_TEACHERS and name[0] != "_")


def load_teacher(text: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Teacher:
    """A frozen teacher from `NAME`, `NAME=FILE` or `timm:MODEL`; `dtype` is that of its trunk's matrix products.

    Raises UserError (listing the names) for an unknown one, WeightsMissing, PackageMissing or CheckpointError.
    """
    name, _, argument = text.partition("=")
    if name.startswith("timm:"):
        name, argument = "timm", text.removeprefix("timm:")
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown teacher {name!r}; known: {', '.join(names())} (timm as timm:MODEL){hint}")
    module = importlib.import_module(f"dune_cli.teachers.{name.replace('-', '_')}")
    return module.load(argument, device, dtype).eval().requires_grad_(False)
