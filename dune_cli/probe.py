"""Run by `dune doctor` as a process of its own: tries things that may be missing, broken or crash the interpreter.

`python -m dune_cli.probe ITEM...` prints one JSON object a line, in the order of the items: `package:MODULE` (is
imported), `installed:MODULE` (is only looked for), `verb:NAME`, `devices`, `matchers`. Whatever else a package prints
goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from typing import Any

from dune_cli import runtime
from dune_cli.errors import DuneError, PackageMissing


def probe(item: str) -> dict[str, Any]:
    """What became of one item; never raises for a failure of what is probed."""
    kind, _, name = item.partition(":")
    try:
        if kind == "package":
            _import(name)
            return {"ok": True}
        if kind == "installed":
            if importlib.util.find_spec(name) is None:
                raise PackageMissing(f"the package {name} is not installed")
            return {"ok": True}
        if kind == "verb":
            importlib.import_module(name)
            return {"ok": True}
        return {"ok": True, **(_devices() if kind == "devices" else _matchers())}
    except DuneError as error:
        return {"ok": False, "error": " ".join(str(error).split())}
    except Exception as error:  # the point is to learn what a foreign package raises
        lines = str(error).strip().splitlines()
        return {"ok": False, "error": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def _import(module: str) -> None:
    from dune_cli import optional

    if module == "open3d":
        optional.import_open3d("meshing")
    else:
        optional.require(module, "dune")


def _devices() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        raise PackageMissing(f"torch does not start ({error})") from error
    cards = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        cards.append({"name": card.name, "memory_bytes": card.total_memory, "bfloat16": torch.cuda.is_bf16_supported()})
    device = runtime.pick_device("auto")
    dtype = str(runtime.pick_dtype("auto", device)).removeprefix("torch.")
    return {
        "torch_threads": torch.get_num_threads(),
        "cuda": cards,
        "mps": torch.backends.mps.is_available(),
        "auto": {"device": str(device), "dtype": dtype},
    }


def _matchers() -> dict[str, Any]:
    from dune_cli.matchers import registry

    found = []
    for name in registry.names():
        state = registry.availability(name)
        found.append({"name": name, "ready": state.ready, "why": state.why, "cure": state.cure})
    return {"matchers": found}


def main(items: list[str]) -> None:
    """Probes and prints; standard output carries nothing but the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr), answers:
        for item in items:
            print(json.dumps({"item": item, **probe(item)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
