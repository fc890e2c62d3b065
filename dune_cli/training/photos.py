"""The photos of a run: groups by teacher, a training and a held-out part, decoding that survives broken files."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dune_cli.errors import JobFailed, UserError
from dune_cli.training.augment import Augmentation, augment
from dune_cli.training.sampler import Slot, is_held_out
from dune_cli.training.sources import Source, open_source

MAX_BROKEN = 0.10  # share of a run's photos
ATTEMPTS = 50


@dataclass(frozen=True)
class Item:
    """One photo: its place in a source."""

    source: Source
    index: int

    @property
    def name(self) -> str:
        return self.source.name(self.index)


@dataclass
class Photos:
    """All photos of a run. `owners[g]`: the teacher whose data group g is, None for data that belongs to none."""

    owners: list[str | None]
    train: list[list[Item]]
    held_out: list[Item]
    broken: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.train)

    def load(self, slot: Slot) -> torch.Tensor:
        """The slot's photo, (3, H, W) uint8 RGB; for a broken one the next that can be read, the same every time.

        Broken photos are counted and listed; more than a tenth of all is a JobFailed.
        """
        group = self.train[slot.group]
        for attempt in range(min(ATTEMPTS, len(group))):
            item = group[(slot.index + attempt) % len(group)]
            if item.name in self.broken:
                continue
            try:
                return decode(item.source.read(item.index))
            except (OSError, ValueError, SyntaxError) as error:
                self._note_broken(item.name, error)
        raise JobFailed(f"{ATTEMPTS} photos in a row cannot be read, the last: {group[slot.index].name}")

    def _note_broken(self, name: str, error: Exception) -> None:
        with self._lock:
            self.broken[name] = " ".join(str(error).split())[:200]
            if len(self.broken) > max(2, MAX_BROKEN * sum(self.sizes)):
                listed = ", ".join(list(self.broken)[:5])
                raise JobFailed(
                    f"{len(self.broken)} of {sum(self.sizes)} photos cannot be read, more than a tenth ({listed}, ...)"
                )


def open_photos(data: Sequence[str], teachers: Sequence[str], held_out_fraction: float) -> Photos:
    """Photos of `SOURCE` or `TEACHER=SOURCE` texts; sources of one teacher form one group, untagged ones another.

    Raises UserError for a tag that is no teacher of the run, for a mixture of tagged and untagged sources, and when
    nothing is left to train on.
    """
    groups: dict[str | None, list[Source]] = {}
    for text in data:
        tag, separator, rest = text.partition("=")
        owner = tag if separator and tag in teachers else None
        if separator and owner is None and "/" not in tag and not tag.startswith((".", "~")):
            raise UserError(f"--data {text!r}: {tag!r} is no teacher of this run; teachers: {', '.join(teachers)}")
        groups.setdefault(owner, []).append(open_source(rest if owner else text))
    if None in groups and len(groups) > 1:
        raise UserError("--data: tag every source with its teacher (dinov2=photos/) or none of them")
    order = [owner for owner in (*teachers, None) if owner in groups]
    items = [[Item(source, i) for source in groups[owner] for i in range(len(source))] for owner in order]
    train = [[item for item in group if not is_held_out(item.name, held_out_fraction)] for group in items]
    held_out = [item for group in items for item in group if is_held_out(item.name, held_out_fraction)]
    if not all(train):
        raise UserError("--data: too few photos: none is left to train on after holding some out")
    return Photos(order, train, held_out)


def decode(data: bytes) -> torch.Tensor:
    """An encoded image as (3, H, W) uint8 RGB, EXIF orientation applied."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def training_crop(photos: Photos, slot: Slot, size_px: int, settings: Augmentation, seed: int) -> torch.Tensor:
    """The slot's augmented crop (3, size, size) in [0, 1]: a function of seed, group and position alone."""
    rng = np.random.default_rng([seed, 1, slot.group, slot.position])
    return augment(photos.load(slot), size_px, settings, rng)


def fixed_crop(photos: Photos, slot: Slot, crop: int, size_px: int, settings: Augmentation, seed: int) -> torch.Tensor:
    """The `crop`-th fixed crop of the slot's photo: a function of seed, group, photo and crop alone."""
    rng = np.random.default_rng([seed, 2, slot.group, slot.index, crop])
    return augment(photos.load(slot), size_px, settings, rng)


def centre_crop(item: Item, size_px: int) -> torch.Tensor:
    """The whole short side of a photo, centred, at size × size, in [0, 1]: what held-out scores are taken on."""
    from torchvision.transforms.v2 import functional as TF

    image = decode(item.source.read(item.index))
    side = min(image.shape[-2:])
    square = TF.resize(TF.center_crop(image, [side, side]), [size_px, size_px], antialias=True)
    return TF.to_dtype(square, torch.float32, scale=True)
