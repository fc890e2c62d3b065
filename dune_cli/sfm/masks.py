"""What is not used of photos: where mask files are 0, and where the bundled segmentation sees given classes.

Masked keypoints keep their place among the features, so that the cache and image retrieval do not depend on masks;
their matches are left out. Dense maps have no points there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dune_cli import console
from dune_cli.geometry.camera_models import Camera
from dune_cli.geometry.cameras import pixel_grid, transform_pixels
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.mask_files import check_classes, find_masks, note_empty, read_mask
from dune_cli.io.photos import read_photo
from dune_cli.matchers.matcher import Matches
from dune_cli.provenance import Run, Source, sha256_of
from dune_cli.sfm.features import LeastRecentlyUsed
from dune_cli.sfm.matching import Correspondences
from dune_cli.sfm.scene import MaskedKeypoints, PointMap

if TYPE_CHECKING:
    from dune_cli.models.heads import HeadedEncoder

BY_FILES = "--masks"  # the name of what mask files leave out
CLASSES = "classes"  # kind of cache entry
CLASSES_LAYOUT = {"classes": ("u", ("H", "W")), "size": ("i", (2,))}
HELD = 64  # class maps in memory
Ignored = Mapping[str, np.ndarray]  # by what, (H, W) bool of the upright photo: pixels that are not used


class MaskSource(Protocol):
    """What says which pixels are not used: `names` of its reasons, and the models behind them."""

    names: tuple[str, ...]
    sources: tuple[Source, ...]

    def ignored(self, photo: Path) -> Ignored: ...


class MaskFiles:
    """Masks in a folder (io.mask_files). All are read once, so that a wrong one is named before the work. `used`: the
    photos but those whose masks are 0 everywhere; UserError where fewer than two are left."""

    names: tuple[str, ...] = (BY_FILES,)
    sources: tuple[Source, ...] = ()

    def __init__(self, folder: str | Path, photos: Sequence[Path]) -> None:
        self.files = find_masks(folder, photos)
        masks = console.progress(self.files.items(), "reading masks", len(self.files), "mask")
        empty = {photo for photo, file in masks if not read_mask(file, photo).any()}
        self.used = [photo for photo in photos if photo not in empty]
        note_empty([photo.name for photo in photos if photo in empty], len(photos))

    def ignored(self, photo: Path) -> Ignored:
        file = self.files.get(photo)
        return {} if file is None else {BY_FILES: ~read_mask(file, photo)}


class MaskedClasses:
    """The pixels of classes that a segmentation head sees. Class maps are kept in the cache."""

    def __init__(self, names: Sequence[str], model: HeadedEncoder, cache: WorkFolder | None, run: Run) -> None:
        """UserError for names that the head does not have."""
        check_classes(names, model.class_names, model.source.name)
        self.names, self.sources = tuple(names), tuple(model.sources)
        self._model, self._cache, self._run = model, cache or WorkFolder(None), run
        self._held: LeastRecentlyUsed[Mapping[str, np.ndarray]] = LeastRecentlyUsed(HELD)

    def ignored(self, photo: Path) -> Ignored:
        from dune_cli.sfm.class_maps import enlarged

        entry = self._held.get(photo, lambda: self._entry(photo))
        height, width = entry["size"].tolist()
        classes = enlarged(entry["classes"], height, width)
        return {name: classes == self._model.class_names.index(name) for name in self.names}

    def _entry(self, photo: Path) -> Mapping[str, np.ndarray]:
        from dune_cli.sfm.class_maps import predict_classes

        dtypes = sorted({str(value.dtype) for value in self._model.parameters()})

        def predicted() -> dict[str, np.ndarray]:
            rgb = read_photo(photo).rgb
            classes, _ = predict_classes(self._model, rgb, None, self._run)
            return {"classes": classes.astype(np.uint8), "size": np.array(rgb.shape[:2], np.int64)}

        def key() -> str:
            return key_of(sha256_of(photo), *(source.sha256 for source in self.sources), *dtypes)

        return self._cache.arrays(CLASSES, key, predicted, CLASSES_LAYOUT)


@dataclass(frozen=True)
class PhotoMasks:
    """The masks of photos, from one or more sources."""

    parts: tuple[MaskSource, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What leaves pixels out: `--masks`, and names of classes."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The models."""
        return tuple(source for part in self.parts for source in part.sources)

    @property
    def of_point_maps(self) -> MaskedKeypoints:
        """The report where there are no keypoints."""
        return MaskedKeypoints(None, 0, dict.fromkeys(self.names, 0))

    def ignored(self, photo: Path) -> Ignored:
        """What each of the `names` leaves out of a photo; those without a mask of it are missing."""
        return {name: ignored for part in self.parts for name, ignored in part.ignored(photo).items()}

    def used(self, photo: Path) -> np.ndarray | None:
        """(H, W) bool: the pixels of the upright photo that are used; None for a photo without a mask."""
        masks = list(self.ignored(photo).values())
        return ~np.logical_or.reduce(masks) if masks else None

    def used_at(self, photo: Path, pixels: np.ndarray) -> np.ndarray:
        """(...) bool: whether the photo is used at the nearest pixel to each of `pixels` (..., 2); NaN is not used."""
        finite = np.isfinite(pixels).all(-1)
        used = self.used(photo)
        return finite if used is None else finite & _at(used, np.where(finite[..., None], pixels, 0.0))

    def masked(self, photos: Sequence[Path], pixels: Sequence[np.ndarray]) -> tuple[list[np.ndarray], MaskedKeypoints]:
        """Of `pixels` (K, 2) of each photo: (K,) bool whether they are used, and how many are not, and by what."""
        keep, by, without = [], dict.fromkeys(self.names, 0), []
        indices = console.progress(range(len(photos)), "masking", unit="photo")
        for photo, own in ((photos[index], pixels[index]) for index in indices):
            used = np.ones(len(own), dtype=bool)
            for name, ignored in self.ignored(photo).items() if len(own) else ():
                left_out = _at(ignored, own)
                by[name] += int(left_out.sum())
                used &= ~left_out
            keep.append(used)
            if len(own) and not used.any():
                without.append(photo.name)
        total = sum(map(len, keep))
        return keep, MaskedKeypoints(total, total - sum(int(used.sum()) for used in keep), by, tuple(without))

    def without_masked(
        self, correspondences: Correspondences, photos: Sequence[Path]
    ) -> tuple[Correspondences, MaskedKeypoints]:
        """The correspondences without the matches of masked keypoints."""
        keep, report = self.masked(photos, correspondences.keypoints)
        matches = {
            (i, j): found[keep[i][found[:, 0]] & keep[j][found[:, 1]]]
            for (i, j), found in correspondences.matches.items()
        }
        return replace(correspondences, matches=matches), report

    def matches_without_masked(self, matches: Matches, photos: Sequence[Path]) -> tuple[Matches, MaskedKeypoints]:
        """The matches of two photos without those at masked pixels."""
        keep, report = self.masked(photos, (matches.points1, matches.points2))
        both = keep[0] & keep[1]
        points1, points2, scores = matches.points1[both], matches.points2[both], matches.scores[both]
        return replace(matches, points1=points1, points2=points2, scores=scores), report

    def on_map(self, dense: PointMap, photo: Path, camera: Camera | None = None) -> PointMap:
        """A view's map without the points that show masked pixels. `camera` of the photo, if it has distortion."""
        used = self.used_on_grid(photo, dense.valid.shape, dense.image_from_map, camera)
        return replace(dense.without_filled(~used), valid=dense.valid & used)

    def used_on_grid(
        self, photo: Path, shape: tuple[int, ...], image_from_map: np.ndarray, camera: Camera | None = None
    ) -> np.ndarray:
        """(h, w) bool: the pixels of a map that show used pixels of the photo."""
        pixels = transform_pixels(image_from_map, pixel_grid(*shape))
        return self.used_at(photo, pixels if camera is None else camera.distort(pixels))


def _at(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(...) bool of a mask (H, W) at the nearest pixels to `pixels` (..., 2)."""
    x, y = np.moveaxis(np.rint(pixels).astype(np.int64), -1, 0)
    return mask[np.clip(y, 0, mask.shape[0] - 1), np.clip(x, 0, mask.shape[1] - 1)]


def open_masks(
    files: MaskFiles | None,
    classes: Sequence[str],
    load_segmenter: Callable[[], HeadedEncoder],
    cache: WorkFolder | None,
    run: Run,
) -> PhotoMasks | None:
    """The masks of --masks and --mask; None without either. `load_segmenter` gives the head that knows the classes.

    UserError for unknown classes."""
    parts: list[MaskSource] = [] if files is None else [files]
    if classes:
        parts.append(MaskedClasses(classes, load_segmenter(), cache, run))
    return PhotoMasks(tuple(parts)) if parts else None
