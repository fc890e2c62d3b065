"""`dune`: one ViT encoder distilled from 2-D and 3-D teachers, and the tasks that run on it.

The Python entry points are functions from photos to results (`api.py`), and loaders of networks. Each loader takes a
registry name or a path, `device=` ("auto", "cpu", "cuda", "mps") and `dtype=` ("float32", the default; "bfloat16";
"auto"), and returns a module that runs without gradients. All are imported on first use, so that `import dune_cli`
costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_ENTRY_POINTS = {
    **dict.fromkeys(("depth", "segment", "classify", "encode", "people", "match", "relocalize", "reconstruct"), "api"),
    "load_encoder": "checkpoints.loader",
    "load_two_view": "checkpoints.loader",
    "load_depth": "checkpoints.loader",
    "load_multiview": "sfm.multiview",
    "load_classifier": "checkpoints.loader",
    "load_segmenter": "checkpoints.loader",
    "load_human": "tasks.human",
}
__all__ = [*_ENTRY_POINTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _ENTRY_POINTS:
        from importlib import import_module

        return getattr(import_module(f"dune_cli.{_ENTRY_POINTS[name]}"), name)
    raise AttributeError(f"module 'dune_cli' has no attribute {name!r}")
