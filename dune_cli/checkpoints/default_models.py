"""The models that a task takes when none is named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DefaultModels:
    """Registry names of a verb's models, best first, and the one to pull where none of them is on this machine."""

    verb: str
    candidates: tuple[str, ...]
    advice: str


DEPTH = DefaultModels(
    "depth",
    (
        "mast3r-vitl",
        "dunemast3r-vitb",
        "dunemast3r-vits",
        "da3metric-large",
        *(f"dinov2-vit{letter}14-nyu-dpt" for letter in "glbs"),
        *(f"dinov2-vit{letter}14-nyu-{head}" for head in ("linear4", "linear") for letter in "glbs"),
        *(f"dinov2-vit{letter}14-kitti-{head}" for head in ("dpt", "linear4", "linear") for letter in "glbs"),
        "dune-depth",
    ),
    "dinov2-vits14-nyu-dpt",
)
CLASSIFY = DefaultModels(
    "classify",
    (
        *(
            f"dinov2-vit{letter}14{registers}-{head}"
            for letter in "glbs"
            for registers in ("-reg", "")
            for head in ("linear4", "linear")
        ),
        "dune-classify",
    ),
    "dinov2-vits14-linear",
)
SEGMENT = DefaultModels(
    "segment",
    (
        *(
            f"dinov2-vit{letter}14-{data}-{head}"
            for data in ("ade20k", "voc2012")
            for head in ("linear", "ms")
            for letter in "glbs"
        ),
        "dune-segment",
    ),
    "dinov2-vits14-ade20k-linear",
)
HUMAN = DefaultModels(
    "human",
    (
        "multihmr-672-l-anny",
        *(f"multihmr-{size}" for size in ("896-l", "672-l", "672-b", "672-s")),
        "dune-people",
    ),
    "multihmr-672-l-anny",
)
MODELS = {models.verb: models for models in (DEPTH, CLASSIFY, SEGMENT, HUMAN)}
