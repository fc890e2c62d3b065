"""Pictures of made-up people with known bodies, and a teacher that knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dune_cli.bodies.registry import load_anny
from dune_cli.bodies.skeleton import FREE_JOINTS
from dune_cli.io.photos import Photo
from dune_cli.training.human.people import LabelledPeople, nobody
from dune_cli.training.human.pseudo_labels import BundledPeopleTeacher
from dune_cli.training.human.synthetic import PictureMaker, PoseBank


def maker(size_px: int = 96, seed: int = 0) -> PictureMaker:
    """A maker of pictures without photos."""
    return PictureMaker(load_anny(), PoseBank(np.zeros((0, len(FREE_JOINTS), 3, 3), np.float32), ()), size_px, seed)


def write_photos(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 8) -> list[Path]:
    """`count` made-up pictures and two empty ones as photos, which the teacher labels by what they were made of."""
    folder.mkdir(parents=True, exist_ok=True)
    drawing, known, paths = maker(), {}, []
    for number in range(count + 2):
        made = drawing.make(number)
        rgb, people = made.rgb, made.people
        if number >= count:
            rgb, people = np.full_like(rgb, 40 * (number - count + 1)), nobody(people.K)
        path = folder / f"{number}.png"
        Image.fromarray(rgb).save(path)
        known[path.name] = people
        paths.append(path)

    def label(teacher: BundledPeopleTeacher, photo: Photo) -> LabelledPeople:
        return known[photo.path.name]

    monkeypatch.setattr(BundledPeopleTeacher, "label", label)
    return paths
