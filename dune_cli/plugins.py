"""Plug-ins by folder: each file of a package is one plug-in, found by its name. Files are read, not imported.

A folder is searched along its package's `__path__`, so a test or another distribution may extend it. Files whose name
begins with "_" are helpers; so is a file without the function or constant that every plug-in of its folder defines.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_MISSING = object()


def names(package: str, defines: str) -> list[str]:
    """The plug-ins of `package` ("dune_cli.teachers"), sorted, with "-" for "_" in file names.

    `defines`: the function, class or constant that each plug-in has at its top level. Only this text is looked for.
    """
    path = importlib.import_module(package).__path__
    defined = re.compile(rf"^(?:def|class) {defines}\b|^{defines}(?: *:[^=\n]+)? *=", re.M)
    files = (module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in files if defined.search(_source(package, name)))


def constant(package: str, name: str, key: str, default: Any = _MISSING) -> Any:
    """The value of the top-level literal `key = ...` in the plug-in's file, which is not imported.

    `default` is returned where the file has no such constant; without it that is a KeyError. ValueError if the value
    is no literal.
    """
    source = _source(package, name.replace("-", "_"))
    # a statement ends before the next line that begins with anything but a blank or a closing bracket
    found = re.search(rf"^{key}(?: *:[^=\n]+)? *=(.*(?:\n(?:[ \t)\]}}].*)?)*)", source, re.M)
    if found is None:
        if default is _MISSING:
            raise KeyError(f"{package}.{name} has no constant {key}")
        return default
    return ast.literal_eval(found[1].strip())


def summary(package: str, name: str, function: str) -> str:
    """The first line of the docstring of a top-level function in the plug-in's file, which is not imported.

    "" where the function has none.
    """
    source = _source(package, name.replace("-", "_"))
    found = re.search(rf'^def {function}\((?:.*\n(?!\n))*?.*\)(?: -> .*)?:\n    """(.*?)(?:"""|$)', source, re.M)
    return "" if found is None else found[1]


def load(package: str, name: str) -> ModuleType:
    """Imports the plug-in `name` of `package`."""
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def _source(package: str, file: str) -> str:
    path = list(importlib.import_module(package).__path__)
    spec = PathFinder.find_spec(f"{package}.{file}", path)
    if spec is None or spec.origin is None:
        raise KeyError(f"{package} has no plug-in {file}")
    origin = Path(spec.origin)
    return _text(origin, origin.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _text(path: Path, modified_ns: int) -> str:
    return path.read_text(encoding="utf-8")
