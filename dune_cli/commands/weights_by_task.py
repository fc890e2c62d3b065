"""What 'dune weights list' shows on one screen: for each task its command and the weights to begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# (task, the command that uses its weights, those to begin with: smallest first)
TASKS = (
    (
        "features",
        "dune encode photo.jpg -o features.npz --model NAME",
        ("dune-mini", "dinov2-vits14", "dinov2-vitl14-reg", "dune-vitb14-448"),
    ),
    (
        "two views: 3-D, metric poses and depth",
        "dune reconstruct a.jpg b.jpg -o scene.ply --model NAME",
        ("dunemast3r-vits", "dunemast3r-vitb", "mast3r-vitl"),
    ),
    (
        "matching",
        "dune reconstruct photos/ -o scene.ply --matcher NAME",
        ("dune-matcher", "xfeat-lighterglue-bundled", "aliked-lightglue"),
    ),
    (
        "depth",
        "dune depth photo.jpg -o depth.png --model NAME",
        ("dinov2-vits14-nyu-dpt", "dinov2-vitl14-nyu-dpt", "dinov2-vits14-kitti-dpt"),
    ),
    (
        "people",
        "dune human photo.jpg -o people.obj --model NAME",
        ("multihmr-672-s", "multihmr-672-l-anny", "multihmr-896-l"),
    ),
    ("classes", "dune classify photo.jpg --model NAME", ("dinov2-vits14-linear", "dinov2-vitl14-linear4")),
    (
        "classes of pixels",
        "dune segment photo.jpg -o classes.png --model NAME",
        ("dinov2-vits14-ade20k-linear", "dinov2-vits14-voc2012-linear"),
    ),
    (
        "teachers",
        "dune distill --data photos/ -o run/ --teachers NAME",
        ("xfeat", "efficientnet-lite2", "people-teacher"),
    ),
)
MATCHERS = {"dune-matcher": "dune", "xfeat-lighterglue-bundled": "xfeat-lighterglue"}  # weights -> --matcher
TEACHERS = {"people-teacher": "people"}


def lines(facts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """`facts` of every entry by its name -> the lines of the screen."""
    shown = [(*task, [name for name in task[2] if name in facts]) for task in TASKS]
    width = max(len(_called(name)) for *_, names in shown for name in names)
    for task, command, _, names in shown:
        yield f"{task}: {command}"
        for name in names:
            yield f"  {_called(name).ljust(width)}  {_size(facts[name]):>8}  {_here(facts[name])}".rstrip()
    named = {name for *_, names in shown for name in names}
    more = [name for name, row in facts.items() if row["present"] and name not in named]
    if more:
        yield f"also here: {', '.join(more)}"
    yield f"'dune weights pull NAME' fetches; all {len(facts)} with licences: 'dune weights list --all'"


def _called(name: str) -> str:
    alias = MATCHERS.get(name) or TEACHERS.get(name)
    return f"{alias} ({name})" if alias else name


def _size(row: dict[str, Any]) -> str:
    from dune_cli.checkpoints import registry

    return ("" if row["size_is_exact"] else "~") + registry.format_bytes(row["size_bytes"])


def _here(row: dict[str, Any]) -> str:
    if row["present"]:
        return f"here ({row['origin']})"
    return "non-commercial" if "non-commercial" in row["licence"] else ""
