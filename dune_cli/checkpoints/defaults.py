"""The model that a verb takes when the user names none: the best published one that is on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from dune_cli.checkpoints import registry, weights_folder
from dune_cli.checkpoints.registry import Entry
from dune_cli.errors import WeightsMissing

# best first; what is to be pulled when none is here
DEPTH = (
    "mast3r-vitl",
    "dunemast3r-vitb",
    "dunemast3r-vits",
    *(f"dinov2-vit{letter}14-nyu-dpt" for letter in "glbs"),
    *(f"dinov2-vit{letter}14-nyu-{head}" for head in ("linear4", "linear") for letter in "glbs"),
    *(f"dinov2-vit{letter}14-kitti-{head}" for head in ("dpt", "linear4", "linear") for letter in "glbs"),
)
CLASSIFY = tuple(
    f"dinov2-vit{letter}14{registers}-{head}"
    for letter in "glbs"
    for registers in ("-reg", "")
    for head in ("linear4", "linear")
)
SEGMENT = tuple(
    f"dinov2-vit{letter}14-{data}-{head}"
    for data in ("ade20k", "voc2012")
    for head in ("linear", "ms")
    for letter in "glbs"
)
HUMAN = ("multihmr-672-l-anny", *(f"multihmr-{size}" for size in ("896-l", "672-l", "672-b", "672-s")))
ADVICE = {
    "depth": "dinov2-vits14-nyu-dpt",
    "classify": "dinov2-vits14-linear",
    "segment": "dinov2-vits14-ade20k-linear",
    "human": "multihmr-672-l-anny",
}
CANDIDATES = {"depth": DEPTH, "classify": CLASSIFY, "segment": SEGMENT, "human": HUMAN}


def default_model(verb: str) -> str:
    """The registry name for a verb of CANDIDATES. WeightsMissing (what to pull) if none is here."""
    for name in CANDIDATES[verb]:
        if all(weights_folder.find_present(entry) for entry in _needed(name)):
            return name
    raise no_default_model(verb, ADVICE[verb])


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
