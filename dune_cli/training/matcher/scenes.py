"""Which folders of frames the matcher may learn from, which of them it is validated on, and which it must never see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.training.common.sampler import held_out_mask

# the scenes of the `wide` pairs of `dune eval pairs`
BENCHMARK = frozenset(
    (
        *("beer_can_0", "beer_can_1", "fern", "gold_cape_0", "gold_cape_1", "gold_cape_2"),
        *("phone_desk_0", "phone_desk_1", "plush_whale_0", "plush_whale_1"),
    )
)
PHOTOS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class TrainingScene:
    """Photos of one static scene, in the order of their names. `held_out`: for validation, not for training."""

    name: str
    photos: tuple[Path, ...]
    held_out: bool


def find_scenes(folders: Iterable[Path], held_out_fraction: float, validate: Sequence[str] = ()) -> list[TrainingScene]:
    """The scenes below `folders`: each folder with two or more photos is one.

    The benchmark's scenes are left out. `validate` names the scenes to hold out; without any, a share of them is by
    the hash of their names. Parts of one scene (`rock_0`, `rock_1`) go together. Ordered so that every start of the
    list has many kinds of scenes, held-out ones first. UserError where there is none, or none of a name to validate on.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--scenes {folder} is no folder; name folders that hold one folder of photos a scene")
        for path in sorted({folder, *(p for p in folder.rglob("*") if p.is_dir())}):
            photos = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTOS and p.is_file()))
            if len(photos) > 1 and path.name not in BENCHMARK:
                if path.name in found:
                    raise UserError(f"--scenes has two scenes of the name {path.name}; rename one")
                found[path.name] = photos
    if not found:
        raise UserError(f"--scenes holds no folder of two or more photos: {', '.join(map(str, folders))}")
    groups = sorted({group_of(name) for name in found})
    unknown = sorted({group_of(name) for name in validate} - set(groups))
    if unknown:
        raise UserError(f"--validate: --scenes has no scene {unknown[0]}; it has {', '.join(groups[:8])} …")
    if validate:
        kept = {group: group in {group_of(name) for name in validate} for group in groups}
    else:
        kept = dict(zip(groups, held_out_mask(groups, held_out_fraction)))
    order = sorted(found, key=lambda n: (part_of(n) > 0, not kept[group_of(n)], len(found[n]) < 5, part_of(n), n))
    return [TrainingScene(name, found[name], kept[group_of(name)]) for name in order]


def refuse_benchmark(names: Iterable[str]) -> None:
    """UserError if a scene of the benchmark is among `names`, whatever brought it there."""
    wrong = sorted(BENCHMARK & set(names))
    if wrong:
        raise UserError(
            f"the labels hold {', '.join(wrong)}, scenes that 'dune eval pairs' tests on; delete them and label again"
        )


def group_of(name: str) -> str:
    """The scene that a part belongs to: its name without the number at the end."""
    return re.sub(r"_?\d+$", "", name)


def part_of(name: str) -> int:
    """The number at the end of a scene's name; 0 without one."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0
