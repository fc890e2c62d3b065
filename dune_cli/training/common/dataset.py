"""Training images: sources (folders, text lists, tar shards), the data set of a run, augmentation, crops.

Sources have random access, so that a resumed run goes on exactly. torch is imported in functions, so that a command
reports missing photos without waiting for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tarfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dune_cli import optional
from dune_cli.errors import DuneError, JobFailed, PackageMissing, UserError
from dune_cli.io.inputs import IMAGE_SUFFIXES
from dune_cli.io.photos import decode_photo
from dune_cli.io.safe_read import MIB, file_in, open_regular, read_bytes, read_text
from dune_cli.training.common.sampler import BatchSlot, held_out_mask

if TYPE_CHECKING:
    import torch

PHOTO_LIMIT_BYTES = 1024 * MIB
MAX_SHARD_MEMBERS = 10_000_000
MAX_BROKEN = 0.10  # share of a run's photos

# --- sources ---


class ImageSource(ABC):
    """Encoded images in a fixed order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """A stable name of an image: its path or shard member, relative to the source."""

    @abstractmethod
    def label(self, index: int) -> str:
        """The image's path or URL, for messages."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError or UserError when it cannot be read."""


class ImageFiles(ImageSource):
    """Local files; their names are relative to `root`."""

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        path = self.paths[index]
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def label(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        return read_bytes(self.paths[index], "a photo", PHOTO_LIMIT_BYTES)


class _CheckedTarInfo(tarfile.TarInfo):
    """A member whose size may not be negative: tarfile would read such an archive in an endless loop."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.InvalidHeaderError(f"a member has the size {count}")
        return super()._block(count)


class TarShards(ImageSource):
    """Images inside WebDataset tar shards, read in place by offset; local, or remote through fsspec.

    UserError for a shard that cannot be read, is damaged or ends in the middle of a member.
    """

    def __init__(self, shards: list[str]) -> None:
        self.members: list[tuple[str, str, int, int]] = []  # shard, member, offset, size
        for shard in shards:
            try:
                with _open_shard(shard) as file:
                    self.members += _list_members(shard, file)
            except (UserError, PackageMissing):
                raise
            except Exception as error:  # damaged bytes make tarfile and remote file systems raise anything
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise UserError(
                    f"cannot read the tar shard {shard}: {reason} (shards must not be compressed)"
                ) from error

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        shard, member, _, _ = self.members[index]
        return f"{Path(shard).name}/{member}"

    def label(self, index: int) -> str:
        shard, member, _, _ = self.members[index]
        return f"{shard}:{member}"

    def read(self, index: int) -> bytes:
        shard, _, offset, size = self.members[index]
        try:
            with _open_shard(shard) as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, UserError, PackageMissing):
            raise
        except Exception as error:  # a remote file system may raise anything
            raise OSError(f"cannot read {self.label(index)}: {' '.join(str(error).split())[:200]}") from error


def _list_members(shard: str, file: IO[bytes]) -> list[tuple[str, str, int, int]]:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    members: list[tuple[str, str, int, int]] = []
    last_offset = -1
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_CheckedTarInfo) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile would keep them all
            if member.offset_data <= last_offset or len(members) > MAX_SHARD_MEMBERS:
                raise tarfile.ReadError("its members go in circles")
            last_offset = member.offset_data
            if member.isreg() and not member.issparse() and member.name.lower().endswith(IMAGE_SUFFIXES):
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends in the middle of {member.name}")
                if member.size > PHOTO_LIMIT_BYTES:
                    raise tarfile.ReadError(f"{member.name} has {member.size} bytes, which is too much for a photo")
                members.append((shard, member.name, member.offset_data, member.size))
        file.seek(archive.offset)  # tarfile takes a damaged header after the first for the end
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")
    return members


@contextlib.contextmanager
def _open_shard(url: str) -> Iterator[IO[bytes]]:
    if "://" not in url:
        with open_regular(url, "a tar shard") as file:
            yield file
        return
    try:
        import fsspec

        remote = fsspec.open(url, "rb").open()
    except ImportError as error:
        raise PackageMissing(f"reading {url} needs another package ({error}); install it with pip") from error
    with remote:
        yield remote


def check_source(text: str) -> None:
    """Raises the UserError of `open_source` for a source that is missing or empty, without listing its images."""
    path = Path(text).expanduser()
    if text.endswith(".tar"):
        has_images = "://" in text or any(path.parent.glob(path.name))
    elif path.is_dir():
        has_images = any(_find_images(path))
    elif path.is_file() and text.endswith(".txt"):
        has_images = True
    else:
        raise UserError(f"cannot train on {text!r}: no such folder, .txt list of paths, or .tar shards; check the path")
    if not has_images:
        raise UserError(f"{text} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")


def split_tag(text: str, teachers: Sequence[str]) -> tuple[str | None, str]:
    """(teacher or None, source) of `TEACHER=SOURCE` or `SOURCE`. UserError for a tag that is no teacher."""
    tag, separator, rest = text.partition("=")
    if not separator or Path(text).exists():
        return None, text
    if tag in teachers:
        return tag, rest
    if "/" in tag or tag.startswith((".", "~")):
        return None, text
    raise UserError(f"--data {text!r}: {tag!r} is no teacher of this run; its teachers: {', '.join(teachers)}")


def _find_images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def open_source(text: str) -> ImageSource:
    """A folder (searched recursively), a text list of paths, or tar shards (a path, URL or glob ending in .tar).

    Relative paths in a list start at the list's folder; lines that begin with # are comments. Raises UserError for a
    source that is missing, empty or damaged.
    """
    check_source(text)
    path = Path(text).expanduser()
    if text.endswith(".tar"):
        shards = [text] if "://" in text else sorted(str(shard) for shard in path.parent.glob(path.name))
        source: ImageSource = TarShards(shards)
    elif path.is_dir():
        source = ImageFiles(path, sorted(_find_images(path)))
    else:
        source = ImageFiles(path.parent, [file_in(path.parent, line) for line in _list_lines(path)])
    if len(source) == 0:
        raise UserError(f"{text} holds no images; allowed endings: {' '.join(IMAGE_SUFFIXES)}")
    return source


def _list_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path, "a list of photos").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


# --- augmentation ---


@dataclass(frozen=True)
class Augmentation:
    """Published ranges and probabilities (docs/models/distillation.md). photometric: if False, only crop and flip."""

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_kernel_px: int = 9
    blur_sigma_px: tuple[float, float] = (0.1, 5.0)
    blur_probability: float = 0.2
    solarize_threshold: float = 0.5
    solarize_probability: float = 0.2
    photometric: bool = True


def augment(image: torch.Tensor, size_px: int, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """image (3, H, W) uint8 -> (3, size, size) float32 in [0, 1]: crop, flip, colour jitter, grey, blur, solarise.

    All random numbers are drawn from `rng`.
    """
    import torch

    optional.import_torchvision("training")
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    top, left, height, width = _crop_box(image.shape[-2], image.shape[-1], settings, rng)
    crop = TF.resized_crop(
        image, top, left, height, width, [size_px, size_px], InterpolationMode.BICUBIC, antialias=True
    )
    if rng.random() < 0.5:
        crop = TF.horizontal_flip(crop)
    crop = TF.to_dtype(crop, torch.float32, scale=True)
    return _photometric(crop, settings, rng).clamp(0, 1) if settings.photometric else crop


def _crop_box(height: int, width: int, settings: Augmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width): up to ten draws of area and aspect, else the largest allowed centred crop."""
    for _ in range(10):
        area = height * width * rng.uniform(*settings.scale)
        aspect = math.exp(rng.uniform(math.log(settings.ratio[0]), math.log(settings.ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, settings.ratio[0]), settings.ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def _photometric(image: torch.Tensor, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    from torchvision.transforms.v2 import functional as TF

    if rng.random() < settings.jitter_probability:
        brightness, contrast, saturation, hue = settings.jitter
        for change in rng.permutation(4):
            if change == 0:
                image = TF.adjust_brightness(image, rng.uniform(1 - brightness, 1 + brightness))
            elif change == 1:
                image = TF.adjust_contrast(image, rng.uniform(1 - contrast, 1 + contrast))
            elif change == 2:
                image = TF.adjust_saturation(image, rng.uniform(1 - saturation, 1 + saturation))
            else:
                image = TF.adjust_hue(image, rng.uniform(-hue, hue))
    if rng.random() < settings.grey_probability:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if rng.random() < settings.blur_probability:
        image = TF.gaussian_blur(image, [settings.blur_kernel_px] * 2, [rng.uniform(*settings.blur_sigma_px)] * 2)
    if rng.random() < settings.solarize_probability:
        image = TF.solarize(image, settings.solarize_threshold)
    return image


# --- the data set of a run ---


@dataclass(frozen=True)
class ImageItem:
    """The `index`-th image of a source."""

    source: ImageSource
    index: int

    @property
    def name(self) -> str:
        return self.source.name(self.index)

    @property
    def label(self) -> str:
        return self.source.label(self.index)


@dataclass
class PhotoDataset:
    """All photos of a run. Photos that cannot be read are recorded and replaced.

    owners: of each group of `train`, the teacher that its sources are tagged with, or None. broken: label -> reason, of
    photos that could not be read; `on_broken` is called with each new one.
    """

    owners: list[str | None]
    train: list[list[ImageItem]]
    held_out: list[ImageItem]
    broken: dict[str, str] = field(default_factory=dict)
    on_broken: Callable[[str, str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Training photos of each group."""
        return tuple(len(group) for group in self.train)

    @property
    def count(self) -> int:
        """The number of all photos, training and held out."""
        return sum(self.group_sizes) + len(self.held_out)

    @property
    def hash(self) -> str:
        """sha256 of the names of all photos in order, with their group."""
        digest = hashlib.sha256()
        for owner, group in (*zip(self.owners, self.train), ("held out", self.held_out)):
            digest.update(f"{owner}\1".encode())
            for item in group:
                digest.update(item.name.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()

    def load(self, slot: BatchSlot) -> torch.Tensor:
        """The slot's photo, (3, H, W) uint8 RGB; if it cannot be read, the next of the group that can.

        JobFailed when more than a tenth of all photos cannot be read.
        """
        group = self.train[slot.group]
        for attempt in range(len(group)):
            image = self.read(group[(slot.index + attempt) % len(group)])
            if image is not None:
                return image
        raise JobFailed(f"none of the {len(group)} photos can be read, such as {group[0].label}")

    def read(self, item: ImageItem) -> torch.Tensor | None:
        """A photo, (3, H, W) uint8 RGB; None if it cannot be read, which is recorded."""
        if item.label in self.broken:
            return None
        try:
            return decode(item)
        except (OSError, DuneError) as error:
            self._record_broken(item.label, " ".join(str(error).split())[:300])
            return None

    def _record_broken(self, label: str, reason: str) -> None:
        with self._lock:
            if label in self.broken:
                return
            self.broken[label] = reason
            if self.on_broken is not None:
                self.on_broken(label, reason)
            if len(self.broken) > max(1, MAX_BROKEN * self.count):
                listed = "; ".join(list(self.broken.values())[:3])
                raise JobFailed(
                    f"{len(self.broken)} of {self.count} photos cannot be read, more than a tenth: {listed}; "
                    "repair or remove them and run the same command again"
                )


def open_dataset(data: Sequence[str], teachers: Sequence[str], held_out_fraction: float) -> PhotoDataset:
    """The photos of `SOURCE` or `TEACHER=SOURCE` texts. Sources of one teacher form a group, untagged ones another.

    Raises UserError for a tag that is no teacher of the run, for a mixture of tagged and untagged sources, and when
    nothing is left to train on.
    """
    groups: dict[str | None, list[ImageSource]] = {}
    for text in data:
        owner, source = split_tag(text, teachers)
        groups.setdefault(owner, []).append(open_source(source))
    if None in groups and len(groups) > 1:
        raise UserError(f"--data: tag every source with its teacher ({teachers[0]}=photos/) or none of them")
    train: list[list[ImageItem]] = []
    held_out: list[ImageItem] = []
    order = [owner for owner in (*teachers, None) if owner in groups]
    for owner in order:
        items = [ImageItem(source, index) for source in groups[owner] for index in range(len(source))]
        mask = held_out_mask([item.name for item in items], held_out_fraction)
        train.append([item for item, is_held_out in zip(items, mask) if not is_held_out])
        held_out += [item for item, is_held_out in zip(items, mask) if is_held_out]
        if not train[-1]:
            tag = f" of {owner}" if owner else ""
            raise UserError(
                f"--data{tag}: {len(items)} photos are too few, none is left to train on after holding out "
                f"{held_out_fraction:g} of them; give more, or --held-out 0"
            )
    return PhotoDataset(order, train, held_out)


def decode(item: ImageItem) -> torch.Tensor:
    """A photo as (3, H, W) uint8 RGB, EXIF orientation applied. OSError or UserError if it cannot be read."""
    import torch

    rgb = decode_photo(item.source.read(item.index), item.label)
    return torch.from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1)


def training_crop(
    dataset: PhotoDataset, slot: BatchSlot, size_px: int, settings: Augmentation, seed: int
) -> torch.Tensor:
    """The slot's augmented crop (3, size, size) in [0, 1]: a function of seed, group and position alone."""
    rng = np.random.default_rng([seed, 1, slot.group, slot.position])
    return augment(dataset.load(slot), size_px, settings, rng)


def fixed_crop(
    dataset: PhotoDataset, slot: BatchSlot, crop: int, size_px: int, settings: Augmentation, seed: int
) -> torch.Tensor:
    """The `crop`-th fixed crop of the slot's photo: a function of seed, group, photo and crop alone."""
    rng = np.random.default_rng([seed, 2, slot.group, slot.index, crop])
    return augment(dataset.load(slot), size_px, settings, rng)


def centre_crop(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """The centred square of a photo (3, H, W) uint8, its short side long, as (3, size, size) in [0, 1]; for scores."""
    import torch

    optional.import_torchvision("training")
    from torchvision.transforms.v2 import functional as TF

    side = min(image.shape[-2:])
    square = TF.resize(TF.center_crop(image, [side, side]), [size_px, size_px], antialias=True)
    return TF.to_dtype(square, torch.float32, scale=True)
