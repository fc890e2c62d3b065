"""Features and labels of all views, computed once: float16 in safetensors shards, a shard at a time, killed or not.

With a frozen encoder a shard holds the head's features; with an encoder that is tuned, the pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dune_cli import console
from dune_cli.console import progress
from dune_cli.errors import DuneError, JobFailed, UserError
from dune_cli.io.cache import read_cached, write_cached
from dune_cli.io.photos import Photo, read_header, read_photo
from dune_cli.training.heads.datasets import Example
from dune_cli.training.heads.feature_shards import ROWS, FeatureShards, encoded
from dune_cli.training.heads.labels import LabelMap, LabelTeacher, read_label
from dune_cli.training.heads.views import draw_view, nearest_label, smooth_label, view_image, view_size

SCHEMA = "dune.head-features/1"
LABEL_SCHEMA = "dune.head-labels/1"
IMAGE, TARGET, FOCAL = "image", "target", "focal_px"


@dataclass(frozen=True)
class FeatureCacheKey:
    """What all cached values depend on; another key is another folder.

    encoder: sha256 of its weights. features: their names, none where pictures are cached. target_scale: cells of the
    labels along a patch's side.
    """

    encoder: str
    features: tuple[str, ...]
    patch: int
    size_px: int
    views: int
    seed: int
    photometric: bool
    target_scale: int

    @property
    def folder(self) -> str:
        text = json.dumps(self.__dict__, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """A view in the cache: the example's and the view's number, and where it lies."""

    example: int
    view: int
    shard: int
    place: int


def example_identity(example: Example) -> str:
    """The photo's name and size in bytes, and its label; another text for another photo or label."""
    sizes = [path.stat().st_size for path in (example.photo, getattr(example.label, "path", None)) if path is not None]
    return f"{example.name}\0{sizes}\0{example.label!r}"


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of the identities of examples, in order."""
    texts = "\1".join(map(example_identity, examples))
    return hashlib.sha256(texts.encode(errors="surrogateescape")).hexdigest()


class FeatureCache:
    """The views of a run.

    rows: by height, width and kind of label, of which a batch has one. kinds: of the examples' labels ("metric",
    "disparity", "classes", "logits", "class"). left_out: photos without rows, and why: those that cannot be read, and
    those that the teacher gives no label to. The teacher's labels are kept in `label_folder`, for any encoder.
    """

    def __init__(
        self,
        folder: Path,
        key: FeatureCacheKey,
        examples: Sequence[Example],
        teacher: LabelTeacher | None = None,
        label_folder: Path | None = None,
    ) -> None:
        self.key, self.examples = key, tuple(examples)
        self._shards = FeatureShards(folder / key.folder, SCHEMA, "--views")
        self.teacher, self.label_folder = teacher, label_folder
        self.rows: dict[tuple[int, int, str], list[Row]] = {}
        self.kinds: dict[int, str] = {}
        self.left_out: dict[str, str] = {}

    def fill(self, encoder: nn.Module) -> None:
        """Computes what is missing or damaged. A shard holds views of one set, so that other sets do not change it.

        UserError for a label that does not fit its photo; JobFailed where a shard cannot be written.
        """
        self._shards.fill(self._plan(), lambda part: self._compute(encoder, part))

    def read(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The features (or "image") by name, "target" and "focal_px" of rows of one kind, stacked, as stored.

        JobFailed for a shard that cannot be read.
        """
        return self._shards.read((row.shard, row.place) for row in rows)

    @property
    def bytes(self) -> int:
        """What the shards take on the disk."""
        return self._shards.bytes

    def _plan(self) -> list[list[tuple[int, int]]]:
        """The (example, view) pairs of each shard; fills `rows`, `kinds` and `left_out`."""
        plan: dict[tuple[str, int, int, str], list[tuple[int, int]]] = {}
        for index, example in enumerate(progress(self.examples, "labels", unit="photo")):
            header = read_header(example.photo)
            if header is None:
                self.left_out[str(example.photo)] = "it cannot be read"
                continue
            if example.label is None and self._teacher_label(example) is None:
                self.left_out[str(example.photo)] = f"{self.teacher.name if self.teacher else None} gives it no label"
                continue
            self.kinds[index] = self._kind(example)
            grid = view_size(header.width, header.height, self.key.patch, self.key.size_px)
            pairs = plan.setdefault((example.set_name, *grid, self.kinds[index]), [])
            pairs.extend((index, view) for view in range(self.key.views))
        shards: list[list[tuple[int, int]]] = []
        for (set_name, *kind), pairs in sorted(plan.items()):
            for first in range(0, len(pairs), ROWS):
                part = pairs[first : first + ROWS]
                rows = [Row(*pair, len(shards), place) for place, pair in enumerate(part)]
                self.rows.setdefault(tuple(kind), []).extend(rows)
                texts = [f"{example_identity(self.examples[index])}\0{view}" for index, view in part]
                if self.examples[part[0][0]].label is None:
                    texts.append(self._teacher_identity())
                digest = hashlib.sha256("\1".join([set_name, *texts]).encode(errors="surrogateescape")).hexdigest()
                self._shards.paths.append(self._shards.folder / f"{digest[:32]}.safetensors")
                shards.append(part)
        return shards

    def _kind(self, example: Example) -> str:
        if example.label is None:
            return "logits" if self.teacher is not None and self.teacher.name == "mosaic" else "metric"
        if isinstance(example.label, int):
            return "class"
        return getattr(example.label, "kind", "classes")

    # --- labels ---

    def _label(self, example: Example, photo: Photo) -> LabelMap:
        if example.label is not None:
            return read_label(example, (photo.width, photo.height), photo.exif_focal_px)
        label = self._teacher_label(example)
        if label is None:
            raise JobFailed(f"the label of {example.photo} was kept when the run began; run the same command again")
        return label

    def _teacher_label(self, example: Example) -> LabelMap | None:
        """What the teacher says of a photo; None where it says nothing, or the photo cannot be read."""
        teacher, folder = self.teacher, self.label_folder
        if teacher is None or folder is None:
            raise UserError(f"{example.photo} has no label, and no --teacher gives one")
        size = example.photo.stat().st_size
        name = hashlib.sha256(f"{example.photo}\0{size}".encode(errors="surrogateescape")).hexdigest()[:24]
        path = folder / f"{teacher.name}-{name}.safetensors"
        made_of = self._teacher_identity()
        arrays = read_cached(path, LABEL_SCHEMA, made_of)
        if arrays is None:
            try:
                label = teacher.label(read_photo(example.photo).rgb)
            except DuneError as error:
                console.note(f"left out: {error}")
                label = None
            values = np.zeros(0, np.float16) if label is None else label.values.astype(np.float16)
            focal_px = np.nan if label is None or label.focal_px is None else label.focal_px
            arrays = {"values": values, FOCAL: np.array(focal_px, np.float64)}
            folder.mkdir(parents=True, exist_ok=True)
            write_cached(path, LABEL_SCHEMA, made_of, arrays)
        if not arrays["values"].size:
            return None
        focal_px = float(arrays[FOCAL])
        values = arrays["values"].astype(np.float32)
        return LabelMap(self._kind(example), values, None if np.isnan(focal_px) else focal_px)

    def _teacher_identity(self) -> str:
        assert self.teacher is not None
        return f"{self.teacher.name}, {', '.join(source.sha256 or source.name for source in self.teacher.sources)}"

    # --- shards ---

    def _compute(self, encoder: nn.Module, part: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        pictures, targets, focals = [], [], []
        for index, views in groupby(part, key=lambda pair: pair[0]):
            photo = read_photo(self.examples[index].photo)
            label = self._label(self.examples[index], photo)
            for _, view in views:
                picture, target, focal_px = self._view(index, view, photo, label)
                pictures.append(picture)
                targets.append(target)
                focals.append(focal_px)
        arrays = {TARGET: np.stack(targets), FOCAL: np.array(focals, np.float32)}
        images = torch.stack(pictures)
        if not self.key.features:
            return arrays | {IMAGE: images.numpy()}
        return arrays | encoded(encoder, images, self.key.features)

    def _view(self, index: int, number: int, photo: Photo, label: LabelMap) -> tuple[torch.Tensor, np.ndarray, float]:
        """The picture, the label and the focal length (NaN: not known) of a view."""
        key, name = self.key, self.examples[index].name
        view = draw_view(name, number, photo.width, photo.height, key.patch, key.size_px, key.seed, key.photometric)
        size = tuple(side // key.patch * key.target_scale for side in view.size)
        if label.kind == "class":
            target = label.values
        elif label.kind == "logits":
            target = smooth_label(torch.from_numpy(label.values), view, size).half().numpy()
        else:
            target = nearest_label(label.values, view, size)
            target = target.astype(np.float16) if target.dtype == np.float32 else target
        focal_px = np.nan if label.focal_px is None else view.focal_px(label.focal_px, photo.width, photo.height)
        return view_image(photo.rgb, view), target, focal_px
