"""The model that a verb takes when the user names none: the best published one that is on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.registry import Entry
from dune_cli.errors import WeightsMissing


def default_model(verb: str, candidates: Sequence[str], advice: str) -> str:
    """The first of `candidates`, registry names, that is on this machine with what it needs.

    WeightsMissing if none is; its message says to pull `advice`.
    """
    for name in candidates:
        if all(weights_folder.find_present(entry) for entry in _needed(name)):
            return name
    raise no_default_model(verb, advice)


def no_default_model(verb: str, advice: str) -> WeightsMissing:
    """The sentence that says what to pull, how large it is with what it needs, and its licence."""
    needed = [entry for entry in _needed(advice) if weights_folder.find_present(entry) is None]
    size = registry.format_bytes(sum(entry.size_bytes for entry in needed))
    about = "" if all(entry.size_is_exact for entry in needed) else "about "
    both = " with its encoder" if len(needed) > 1 else ""
    licences = "; ".join(dict.fromkeys(entry.licence for entry in needed))
    return WeightsMissing(
        f"'dune {verb}' needs weights, and none that it can use are on this machine; run 'dune weights pull {advice}' "
        f"({about}{size}{both}; licence: {licences}), or name a file with --model"
    )


def _needed(name: str) -> Sequence[Entry]:
    entry = registry.find(name)
    if entry is None:
        raise KeyError(f"{name} is not in the registry of weights")
    return registry.with_needs([entry])
