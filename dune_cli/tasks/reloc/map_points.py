"""What a map's photos show: keypoints and their points in the world, found when they are first needed, and kept."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry import star_tracks
from dune_cli.io.photos import Photo, read_photo
from dune_cli.matchers.base import FeatureMatcher, Matcher, Matches
from dune_cli.tasks.reloc.map_files import MapImage, PhotoMap
from dune_cli.tasks.reloc.work import WorkFolder

FORMAT = 1  # of the files in the work folder; another number makes them anew
T = TypeVar("T")


@dataclass(frozen=True)
class PointsConfig:
    """`neighbours`: with how many other photos each is matched. `threshold` of a point in pixels of the matched photos;
    `min_angle_deg` at which its rays meet; `seed` of the random sampling."""

    neighbours: int = 8
    threshold: float = 4.0
    min_angle_deg: float = star_tracks.MIN_ANGLE_DEG
    seed: int = 0


@dataclass(frozen=True)
class ImagePoints:
    """A map photo's points: seen at `pixels` (P, 2) of it, `points_world` (P, 3), by `observations` (P,) photos."""

    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray

    def at(self, pixels: np.ndarray, tolerance_px: float) -> np.ndarray:
        """(M,) the index of the point nearest to each of `pixels` (M, 2); -1 where none lies within the tolerance."""
        if len(self.pixels) == 0 or len(pixels) == 0:
            return np.full(len(pixels), -1)
        distance, index = self._tree.query(pixels)
        return np.where(distance <= tolerance_px, index, -1)

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.pixels)


class MapPoints:
    """A map as one matcher sees it.

    `rank`: the other images of the map by likeness to image `i`, for maps whose images share no points that would say
    which to match it with.
    """

    def __init__(
        self,
        photo_map: PhotoMap,
        matcher: Matcher,
        config: PointsConfig,
        work: WorkFolder,
        rank: Callable[[int], list[int]] | None = None,
    ) -> None:
        self.map, self.matcher, self.config, self.work = photo_map, matcher, config, work
        self._rank = rank
        # both keyed by files, so that maps of the same photos can share them
        self._features: _Recent[Any] = _Recent(64)
        self._matches: _Recent[Matches] = _Recent(256)
        self._points: _Recent[ImagePoints] = _Recent(4096)

    def without(self, index: int) -> MapPoints:
        """The map without image `index`; what was seen in the others is not looked at again."""
        images = tuple(
            replace(image, neighbours=tuple(n - (n > index) for n in image.neighbours if n != index))
            for i, image in enumerate(self.map.images)
            if i != index
        )
        smaller = MapPoints(replace(self.map, images=images), self.matcher, self.config, self.work)
        smaller._features, smaller._matches = self._features, self._matches
        return smaller

    def match(self, index: int, photo: Photo, features: Any) -> Matches:
        """Matches of map image `index` (first) with a photo and its features."""
        if isinstance(self.matcher, FeatureMatcher):
            return self.matcher.match_features(self.seen(index), features)
        return self.matcher.match(self.seen(index), photo.rgb)

    def seen(self, index: int) -> Any:
        """The features of map image `index`; for a matcher without any, its pixels. UserError for a photo that cannot
        be read or is not of the model's camera."""
        image = self.map.images[index]
        return self._features.get(image.file, lambda: self._look(image))

    def points(self, index: int) -> ImagePoints:
        """The points of map image `index`."""
        return self._points.get(index, lambda: self._kept_points(index))

    def _look(self, image: MapImage) -> Any:
        photo = read_photo(image.file)
        check_size(image, photo)
        return self.matcher.extract(photo.rgb) if isinstance(self.matcher, FeatureMatcher) else photo.rgb

    def _neighbours(self, index: int) -> list[int]:
        chosen = list(self.map.images[index].neighbours[: self.config.neighbours])
        others = [i for i in range(len(self.map.images)) if i != index]
        if not chosen and len(others) > self.config.neighbours and self._rank is not None:
            chosen = self._rank(index)
        return (chosen or others)[: self.config.neighbours]

    def _kept_points(self, index: int) -> ImagePoints:
        star = [index, *self._neighbours(index)]
        arrays = self.work.arrays(f"points-{self._key(star)}.npz", lambda: self._triangulated(star))
        return ImagePoints(**arrays)

    def _key(self, star: list[int]) -> str:
        """Changes with whatever the points follow from."""
        images = [self.map.images[i] for i in star]
        matcher = self.matcher
        facts = [
            *(FORMAT, asdict(self.config), matcher.name, matcher.working_size_px, matcher.source.sha256),
            *((i.sha256, i.lens.model, i.lens.params, np.round(i.world_from_cam, 12).tolist()) for i in images),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _triangulated(self, star: list[int]) -> dict[str, np.ndarray]:
        """The fields of `ImagePoints` for the first of `star`, from its matches with the others."""
        first = self.map.images[star[0]]
        pairs = [self._pair(star[0], other) for other in star[1:]]
        unit_px = pairs[0].pixel_size1 if pairs else 1.0
        everywhere = np.concatenate([pair.points1 for pair in pairs] or [np.zeros((0, 2))])
        # one keypoint is one pixel whatever it is matched with; half a matched pixel apart counts as the same
        _, places, row = np.unique(
            np.rint(2 * everywhere / unit_px).astype(np.int64), axis=0, return_index=True, return_inverse=True
        )
        pixels, row = everywhere[places], row.ravel()
        rays, start = [], 0
        for other, pair in zip(star[1:], pairs):
            image, rows = self.map.images[other], row[start : start + len(pair.points1)]
            start += len(rows)
            straight = image.lens.straight(pair.points2)
            best = _best_of_each(rows, pair.scores, np.isfinite(straight).all(-1))
            rays.append(
                star_tracks.Ray(rows[best], straight[best], image.lens.K, image.cam_from_world, pair.pixel_size2)
            )
        straight = first.lens.straight(pixels)
        found = star_tracks.triangulate_star(
            np.nan_to_num(straight, nan=-1e6),  # no ray meets a pixel so far out
            first.lens.K,
            first.cam_from_world,
            unit_px,
            rays,
            self.config.threshold,
            self.config.min_angle_deg,
            self.config.seed,
        )
        return {
            "pixels": pixels[found.rows],
            "points_world": found.points_world,
            "observations": found.observations,
        }

    def _pair(self, first: int, second: int) -> Matches:
        if not isinstance(self.matcher, FeatureMatcher):
            return self.matcher.match(self.seen(first), self.seen(second))
        one, two = sorted((first, second))
        key = self.map.images[one].file, self.map.images[two].file
        pair = self._matches.get(key, lambda: self.matcher.match_features(self.seen(one), self.seen(two)))
        return pair if first == one else _swapped(pair)


def check_size(image: MapImage, photo: Photo) -> None:
    """UserError where the photo on the disk is not as large as the model says."""
    if (photo.width, photo.height) != (image.lens.width, image.lens.height):
        raise UserError(
            f"the map's photo {image.file} has {photo.width} x {photo.height} px, but the model says "
            f"{image.lens.width} x {image.lens.height}; name the folder of the photos it was made of with --images"
        )


def _swapped(pair: Matches) -> Matches:
    return Matches(
        pair.points2, pair.points1, pair.scores, pair.keypoints2, pair.keypoints1, pair.pixel_size2, pair.pixel_size1
    )


def _best_of_each(rows: np.ndarray, scores: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Of equal `rows` the index of the one with the highest score, among those that are usable."""
    order = np.flatnonzero(usable)[np.argsort(-scores[usable], kind="stable")]
    return order[np.unique(rows[order], return_index=True)[1]]


class _Recent(Generic[T]):
    """At most `limit` values, those used last."""

    def __init__(self, limit: int) -> None:
        self._limit, self._values = limit, OrderedDict[Hashable, T]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._limit:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]
