"""The photos of a run: groups by teacher, a training and a held-out part, decoding that survives broken files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dune_cli.errors import DuneError, JobFailed, UserError
from dune_cli.io.photos import decode_photo
from dune_cli.training.augment import Augmentation, augment
from dune_cli.training.sampler import Slot, held_out
from dune_cli.training.sources import Source, open_source, tagged

MAX_BROKEN = 0.10  # share of a run's photos


@dataclass(frozen=True)
class Item:
    """One photo: its place in a source."""

    source: Source
    index: int

    @property
    def name(self) -> str:
        return self.source.name(self.index)

    @property
    def label(self) -> str:
        return self.source.label(self.index)


@dataclass
class Photos:
    """All photos of a run. `owners[g]`: the teacher whose data group g is, None for data that belongs to none.

    broken: label -> why, of photos that could not be read; `on_broken` is told of each new one.
    """

    owners: list[str | None]
    train: list[list[Item]]
    held_out: list[Item]
    broken: dict[str, str] = field(default_factory=dict)
    on_broken: Callable[[str, str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.train)

    @property
    def count(self) -> int:
        """All photos, held-out ones too."""
        return sum(self.sizes) + len(self.held_out)

    @property
    def hash(self) -> str:
        """A hash of the names of all photos, in order, and of what they are for."""
        digest = hashlib.sha256()
        for owner, group in (*zip(self.owners, self.train), ("held out", self.held_out)):
            digest.update(f"{owner}\1".encode())
            for item in group:
                digest.update(item.name.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()

    def load(self, slot: Slot) -> torch.Tensor:
        """The slot's photo, (3, H, W) uint8 RGB; for a broken one the next that can be read, the same every time.

        Broken photos are counted and listed; JobFailed when they are more than a tenth of all.
        """
        group = self.train[slot.group]
        for attempt in range(len(group)):
            image = self.read(group[(slot.index + attempt) % len(group)])
            if image is not None:
                return image
        raise JobFailed(f"none of the {len(group)} photos can be read, such as {group[0].label}")

    def read(self, item: Item) -> torch.Tensor | None:
        """A photo, (3, H, W) uint8 RGB; None, and noted, if it is broken."""
        if item.label in self.broken:
            return None
        try:
            return decode(item)
        except (OSError, DuneError) as error:
            self._note_broken(item.label, " ".join(str(error).split())[:300])
            return None

    def _note_broken(self, label: str, why: str) -> None:
        with self._lock:
            if label in self.broken:
                return
            self.broken[label] = why
            if self.on_broken is not None:
                self.on_broken(label, why)
            if len(self.broken) > max(1, MAX_BROKEN * self.count):
                listed = "; ".join(list(self.broken.values())[:3])
                raise JobFailed(
                    f"{len(self.broken)} of {self.count} photos cannot be read, more than a tenth: {listed}; "
                    "repair or remove them and run the same command again"
                )


def open_photos(data: Sequence[str], teachers: Sequence[str], held_out_fraction: float) -> Photos:
    """Photos of `SOURCE` or `TEACHER=SOURCE` texts; sources of one teacher form one group, untagged ones another.

    Raises UserError for a tag that is no teacher of the run, for a mixture of tagged and untagged sources, and when
    nothing is left to train on.
    """
    groups: dict[str | None, list[Source]] = {}
    for text in data:
        owner, place = tagged(text, teachers)
        groups.setdefault(owner, []).append(open_source(place))
    if None in groups and len(groups) > 1:
        raise UserError(f"--data: tag every source with its teacher ({teachers[0]}=photos/) or none of them")
    train: list[list[Item]] = []
    kept: list[Item] = []
    order = [owner for owner in (*teachers, None) if owner in groups]
    for owner in order:
        items = [Item(source, index) for source in groups[owner] for index in range(len(source))]
        flags = held_out([item.name for item in items], held_out_fraction)
        train.append([item for item, flag in zip(items, flags) if not flag])
        kept += [item for item, flag in zip(items, flags) if flag]
        if not train[-1]:
            what = f" of {owner}" if owner else ""
            raise UserError(
                f"--data{what}: {len(items)} photos are too few, none is left to train on after holding out "
                f"{held_out_fraction:g} of them; give more, or --held-out 0"
            )
    return Photos(order, train, kept)


def decode(item: Item) -> torch.Tensor:
    """A photo as (3, H, W) uint8 RGB, EXIF orientation applied. OSError or UserError for a broken one."""
    rgb = decode_photo(item.source.read(item.index), item.label)
    return torch.from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1)


def training_crop(photos: Photos, slot: Slot, size_px: int, settings: Augmentation, seed: int) -> torch.Tensor:
    """The slot's augmented crop (3, size, size) in [0, 1]: a function of seed, group and position alone."""
    rng = np.random.default_rng([seed, 1, slot.group, slot.position])
    return augment(photos.load(slot), size_px, settings, rng)


def fixed_crop(photos: Photos, slot: Slot, crop: int, size_px: int, settings: Augmentation, seed: int) -> torch.Tensor:
    """The `crop`-th fixed crop of the slot's photo: a function of seed, group, photo and crop alone."""
    rng = np.random.default_rng([seed, 2, slot.group, slot.index, crop])
    return augment(photos.load(slot), size_px, settings, rng)


def centre_square(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """The whole short side of a photo (3, H, W) uint8, centred, as (3, size, size) in [0, 1]: for held-out scores."""
    from torchvision.transforms.v2 import functional as TF

    side = min(image.shape[-2:])
    square = TF.resize(TF.center_crop(image, [side, side]), [size_px, size_px], antialias=True)
    return TF.to_dtype(square, torch.float32, scale=True)
