"""Training scenes: which folders of frames the matcher is trained on, which are held out for validation, and which are
excluded because `dune eval pairs` tests on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dune_cli.errors import UserError
from dune_cli.training.common.sampler import held_out_mask

BENCHMARK = frozenset(  # the scenes of the `wide` pairs of `dune eval pairs`
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

    The benchmark's scenes are left out. `validate` names the scenes to hold out; without any, `held_out_fraction` of
    them are, by the hash of their names. Parts of one scene (`rock_0`, `rock_1`) go together. The order is such that
    every prefix of the list has many kinds of scenes, held-out ones first. UserError without any scene, or for a name
    in `validate` that no scene has.
    """
    photos_of: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--scenes {folder} is no folder; name folders that hold one folder of photos a scene")
        for path in sorted({folder, *(p for p in folder.rglob("*") if p.is_dir())}):
            photos = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTOS and p.is_file()))
            if len(photos) > 1 and path.name not in BENCHMARK:
                if path.name in photos_of:
                    raise UserError(f"--scenes has two scenes of the name {path.name}; rename one")
                photos_of[path.name] = photos
    if not photos_of:
        raise UserError(f"--scenes holds no folder of two or more photos: {', '.join(map(str, folders))}")
    groups = sorted({group_of(name) for name in photos_of})
    unknown = sorted({group_of(name) for name in validate} - set(groups))
    if unknown:
        raise UserError(f"--validate: --scenes has no scene {unknown[0]}; it has {', '.join(groups[:8])} …")
    if validate:
        held_out = {group: group in {group_of(name) for name in validate} for group in groups}
    else:
        held_out = dict(zip(groups, held_out_mask(groups, held_out_fraction)))

    def rank(name: str) -> tuple[bool, bool, bool, int, str]:
        few_photos = len(photos_of[name]) < 5
        return part_of(name) > 0, not held_out[group_of(name)], few_photos, part_of(name), name

    return [TrainingScene(name, photos_of[name], held_out[group_of(name)]) for name in sorted(photos_of, key=rank)]


def refuse_benchmark(names: Iterable[str]) -> None:
    """UserError if a scene of the benchmark is among `names`."""
    excluded = sorted(BENCHMARK & set(names))
    if excluded:
        raise UserError(
            f"the labels hold {', '.join(excluded)}, scenes that 'dune eval pairs' tests on; delete them and label "
            "again"
        )


def group_of(name: str) -> str:
    """The scene that a part belongs to: its name without the number at the end."""
    return re.sub(r"_?\d+$", "", name)


def part_of(name: str) -> int:
    """The number at the end of a scene's name; 0 without one."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0
