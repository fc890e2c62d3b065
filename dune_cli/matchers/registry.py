"""Matchers by name. Each is a file of this folder that defines `build`: `xfeat_lighterglue.py` is "xfeat-lighterglue".

It has NAME, MEASURED_AUC10 and MEASURED_SECONDS (a pair on two cores; both on the `wide` pairs of `dune eval pairs`,
None where they depend on the model), TAKES_MODEL, availability() -> Availability, and build(device, dtype, model,
encoder) -> Matcher.
Example: docs/adding/matcher.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from dune_cli import plugins
from dune_cli.errors import UserError
from dune_cli.matchers import sift
from dune_cli.matchers.matcher import Availability, Matcher

_PACKAGE = "dune_cli.matchers"
QUICK_SECONDS = 0.5  # a pair: what "auto" allows where there are many pairs


def names() -> list[str]:
    """Every matcher's name, in alphabetical order, whether it can run here or not."""
    return plugins.names(_PACKAGE, "build")


def availability(name: str) -> Availability:
    """Whether the matcher can run here, and what it needs if not. UserError for an unknown name."""
    return _plugin(name).availability()


def takes_model(name: str) -> bool:
    """Whether the matcher takes `model` and `encoder` files. UserError for an unknown name."""
    return _plugin(name).TAKES_MODEL


def choose_auto(quick: bool = False) -> tuple[str, str]:
    """The name of the best matcher that can run here, by measured AUC@10, and a note on it and on what better ones
    need. `quick`: of those that take at most QUICK_SECONDS a pair, which is for more than two photos."""
    modules = [_plugin(name) for name in names()]
    ranked = sorted((p for p in modules if p.MEASURED_AUC10 is not None), key=lambda p: -p.MEASURED_AUC10)
    better = []
    for plugin in ranked:
        if quick and plugin.MEASURED_SECONDS > QUICK_SECONDS:
            better.append(
                f"--matcher {plugin.NAME} reaches {plugin.MEASURED_AUC10:.2f} at {plugin.MEASURED_SECONDS:.1f} s a pair"
            )
            continue
        state = plugin.availability()
        if state.ready:
            note = f"matcher {plugin.NAME} (AUC@10 {plugin.MEASURED_AUC10:.2f} on wide baselines)"
            return plugin.NAME, "; ".join([note, *better])
        better.append(f"{plugin.NAME} would reach {plugin.MEASURED_AUC10:.2f}: {state.cure}")
    raise AssertionError("sift needs nothing and is always ready")


def load_cascade(device: str = "auto", dtype: str = "auto") -> tuple[Matcher, Callable[[], Matcher] | None, str]:
    """The matchers of more than two photos, and a note on them.

    First sift at the photos' size, which is quick and exact, and places most photos; then, for those that it leaves
    out, the best one that can run here (a function that loads it; None where that is sift).
    """
    name, note = choose_auto()
    first = sift.build_for_many()
    if name == sift.NAME:
        return first, None, note
    return (
        first,
        partial(load_matcher, name, device, dtype),
        f"matcher {sift.NAME}; for photos that it leaves out {note}",
    )


def load_matcher(
    name: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    model: str | None = None,
    encoder: str | None = None,
    quick: bool = False,
) -> Matcher:
    """The matcher `name`; for "auto" what `choose_auto` takes.

    `model`, `encoder`: weight files or registry names, for mast3r (a two-view model) and dune (its head). Raises
    UserError for an unknown name, and for a model where the matcher takes none; PackageMissing and WeightsMissing for
    what is not here.
    """
    if name == "auto":
        name, _ = choose_auto(quick)
    plugin = _plugin(name)
    if (model is not None or encoder is not None) and not plugin.TAKES_MODEL:
        takers = ", ".join(other for other in names() if takes_model(other))
        raise UserError(f"matcher {name} runs on its own weights and takes no --model or --encoder; these do: {takers}")
    matcher = plugin.build(device, dtype, model, encoder)
    matcher.reload = partial(load_matcher, name, device, dtype, _absolute(model), _absolute(encoder))
    return matcher


def _absolute(file: str | None) -> str | None:
    """A weight file's path for processes in other folders; a registry name as it is."""
    return str(Path(file).expanduser().absolute()) if file is not None and Path(file).expanduser().is_file() else file


def _plugin(name: str) -> ModuleType:
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown matcher {name!r}; allowed: auto, {', '.join(known)}{hint}")
    return plugins.load(_PACKAGE, name)
