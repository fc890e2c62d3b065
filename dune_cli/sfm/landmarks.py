"""Landmarks of a map: the features of its photos and their triangulated points, computed on first use and cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dune_cli import runtime
from dune_cli.errors import UserError
from dune_cli.geometry import triangulation
from dune_cli.geometry.bundle_adjustment import point_shifts
from dune_cli.geometry.poses import vector_angle
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import Photo, read_photo
from dune_cli.matchers.filtering import QUARTER_TURNS, LazyThumbnail, Thumbnail, without_static_matches
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher, Matches
from dune_cli.sfm.features import FEATURES, FeatureStore, LeastRecentlyUsed, features_key
from dune_cli.sfm.photo_map import MapImage, PhotoMap

MAX_ROTATION = np.radians(45)  # between viewing directions; it weighs as much as the whole extent of the map
FORMAT = 3  # of the cached points; another number has them computed again
POINTS = "points"  # kind of cache entry
POINTS_BYTES = 500_000_000  # of points that are held at once
QUERY_MATCHES = 64  # of the last queries that are held at once: a query may be localized with several cameras
POINTS_LAYOUT = {
    "pixels": ("f", ("P", 2)),
    "points_world": ("f", ("P", 3)),
    "observations": ("iu", ("P",)),
    "shifts": ("f", ("P", "M", 3)),
}


@dataclass(frozen=True)
class LandmarkConfig:
    """`neighbours`: with how many other photos each is matched. `threshold` of a point in matched pixels;
    `min_angle_deg` between its rays; `seed` of the random sampling."""

    neighbours: int = 8
    threshold: float = 4.0
    min_angle_deg: float = triangulation.MIN_ANGLE_DEG
    seed: int = 0


@dataclass(frozen=True)
class ImageLandmarks:
    """The points of a map image: at `pixels` (P, 2) of the photo, `points_world` (P, 3), each seen by `observations`
    (P,) map images. `shifts` (P, M, 3): their changes with the map's calibration modes (none where it has none)."""

    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    shifts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about: the search tree is as large as the pixels."""
        return 2 * self.pixels.nbytes + self.points_world.nbytes + self.observations.nbytes + self.shifts.nbytes

    def nearest(self, pixels: np.ndarray, tolerance_px: float) -> np.ndarray:
        """(M,) the index of the point nearest to each of `pixels` (M, 2); -1 where none lies within the tolerance."""
        if len(self.pixels) == 0 or len(pixels) == 0:
            return np.full(len(pixels), -1)
        distance, index = self._tree.query(pixels)
        return np.where(distance <= tolerance_px, index, -1)

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.pixels)


class Landmarks:
    """The landmarks of a map with one matcher."""

    def __init__(self, photo_map: PhotoMap, matcher: Matcher, config: LandmarkConfig, cache: WorkFolder) -> None:
        self.map, self.matcher, self.config, self.cache = photo_map, matcher, config, cache
        # all but the points go by photo, so that `without` can share them
        self._store = FeatureStore(matcher, cache) if isinstance(matcher, CacheableMatcher) else None
        self._added: dict[Path, Any] = {}
        self._photos: LeastRecentlyUsed[Photo] = LeastRecentlyUsed(64)  # for matchers without features
        self._matches: LeastRecentlyUsed[Matches] = LeastRecentlyUsed(256)
        self._thumbnails: LeastRecentlyUsed[Thumbnail] = LeastRecentlyUsed(4096)
        self._points: LeastRecentlyUsed[ImageLandmarks] = LeastRecentlyUsed(POINTS_BYTES, lambda points: points.nbytes)
        self._query_features: LeastRecentlyUsed[Any] = LeastRecentlyUsed(QUARTER_TURNS)
        self._query_matches: LeastRecentlyUsed[Matches] = LeastRecentlyUsed(QUERY_MATCHES)

    def without(self, index: int) -> Landmarks:
        """The landmarks of the map without image `index`, which share its features and matches."""
        images = tuple(
            replace(image, neighbours=tuple(n - (n > index) for n in image.neighbours if n != index))
            for i, image in enumerate(self.map.images)
            if i != index
        )
        smaller = Landmarks(replace(self.map, images=images), self.matcher, self.config, self.cache)
        smaller._store, smaller._added, smaller._photos = self._store, self._added, self._photos
        smaller._matches, smaller._thumbnails = self._matches, self._thumbnails
        return smaller

    def add_features(self, index: int, features: Any, photo: Photo) -> None:
        """Takes the features of map image `index` (None for a matcher without any) and its photo, which are then not
        computed and read again."""
        image = self.map.images[index]
        self._thumbnails.get(image.file, lambda: Thumbnail.of(photo.rgb))
        if self._store is None:
            self._photos.get(image.file, lambda: photo)
        else:
            self._added[image.file] = features

    def match(self, index: int, photo: Photo, quarter_turns: int = 0) -> Matches:
        """Matches of map image `index` (first) with a query that is rotated clockwise by quarter turns, which matchers
        with features can do, without static ones. Those of the last queries are held."""
        key = photo.path, photo.sha256, quarter_turns
        return self._query_matches.get((*key, index), lambda: self._match_query(index, photo, quarter_turns))

    def extracted(self, photos: Sequence[Photo]) -> Iterator[Photo]:
        """The photos, each when `match` has its upright features as a query. Those of the next ones are extracted
        meanwhile, in several threads, where the matcher takes one."""
        matcher = self.matcher
        if not isinstance(matcher, CacheableMatcher) or not matcher.one_thread:
            yield from photos
            return
        found = runtime.ordered_map(lambda photo: matcher.extract_rotated(photo.rgb, 0), photos)
        for photo, features in zip(photos, found):
            self._query_features.get((photo.path, photo.sha256, 0), lambda features=features: features)
            yield photo

    def _match_query(self, index: int, photo: Photo, quarter_turns: int) -> Matches:
        if isinstance(self.matcher, CacheableMatcher):
            key, extract = (photo.path, photo.sha256, quarter_turns), self.matcher.extract_rotated
            features = self._query_features.get(key, lambda: extract(photo.rgb, quarter_turns))
            matches = self.matcher.match_features(self.features(index), features)
        else:
            matches = self.matcher.match(self._photo(index).rgb, photo.rgb)
        return without_static_matches(matches, self._thumbnail(index), LazyThumbnail.of(photo.rgb), self.config.seed)

    def features(self, index: int) -> Any:
        """The features of map image `index`. UserError for a photo that cannot be read, or whose size is not that of
        the model's camera."""
        image = self.map.images[index]
        if image.file in self._added:
            return self._added[image.file]
        assert self._store is not None, "only cacheable matchers have features"
        return self._store.get(features_key(image.sha256, self.matcher), lambda: _read_checked(image).rgb)

    def points(self, index: int) -> ImageLandmarks:
        """The points of map image `index`."""
        return self._points.get(index, lambda: self._cached_points(index))

    def has_features(self, index: int) -> bool:
        """Whether the cache holds what `features` needs; True for a matcher without features."""
        if not isinstance(self.matcher, CacheableMatcher):
            return True
        return self.cache.has(FEATURES, features_key(self.map.images[index].sha256, self.matcher))

    def has_points(self, index: int) -> bool:
        """Whether the cache holds the points of map image `index`."""
        return self.cache.has(POINTS, self._key(self._views(index)))

    def _photo(self, index: int) -> Photo:
        image = self.map.images[index]
        return self._photos.get(image.file, lambda: _read_checked(image))

    def _thumbnail(self, index: int) -> LazyThumbnail:
        image = self.map.images[index]

        def load() -> Thumbnail:
            return self._thumbnails.get(image.file, lambda: Thumbnail.of(_read_checked(image).rgb))

        return LazyThumbnail((image.camera.width, image.camera.height), load)

    def _views(self, index: int) -> list[int]:
        """A map image, and those that it is matched with."""
        return [index, *matching_neighbours(self.map, index, self.config.neighbours)]

    def _cached_points(self, index: int) -> ImageLandmarks:
        views = self._views(index)
        arrays = self.cache.arrays(POINTS, lambda: self._key(views), lambda: self._triangulate(views), POINTS_LAYOUT)
        return ImageLandmarks(**arrays)

    def _key(self, views: list[int]) -> str:
        """Of all that the points depend on."""
        matcher, images = self.matcher, [self.map.images[index] for index in views]
        poses = [(i.sha256, i.camera.model, i.camera.params, np.round(i.world_from_cam, 12).tolist()) for i in images]
        modes = [None if image.modes is None else np.round(image.modes, 12).tolist() for image in images]
        weights = [matcher.name, matcher.working_size_px, matcher.source.name, matcher.source.sha256]
        return key_of(FORMAT, *weights, asdict(self.config), poses, modes)

    def _triangulate(self, views: list[int]) -> dict[str, np.ndarray]:
        """The fields of `ImageLandmarks` for the first of the views, from its matches with the others."""
        first = self.map.images[views[0]]
        pairs = [self._pair(views[0], other) for other in views[1:]]
        pixel_size = pairs[0].pixel_size1 if pairs else 1.0
        all_pixels = np.concatenate([pair.points1 for pair in pairs] or [np.zeros((0, 2))])
        # a keypoint has the same pixel in all pairs; matches within half a matched pixel are of one keypoint
        _, keypoints, row = np.unique(
            np.rint(2 * all_pixels / pixel_size).astype(np.int64), axis=0, return_index=True, return_inverse=True
        )
        pixels, row = all_pixels[keypoints], row.ravel()
        others, start = [], 0
        for index, pair in zip(views[1:], pairs):
            image, rows = self.map.images[index], row[start : start + len(pair.points1)]
            start += len(rows)
            undistorted = image.camera.undistort(pair.points2)
            best = _best_per_row(rows, pair.scores, np.isfinite(undistorted).all(-1))
            others.append(
                triangulation.ViewObservations(
                    rows[best], undistorted[best], image.camera.K, image.cam_from_world, pair.pixel_size2
                )
            )
        result = triangulation.triangulate_with_known_poses(
            np.nan_to_num(first.camera.undistort(pixels), nan=-1e6),  # no ray meets a pixel so far outside
            first.camera.K,
            first.cam_from_world,
            pixel_size,
            others,
            self.config.threshold,
            self.config.min_angle_deg,
            self.config.seed,
        )
        return {
            "pixels": pixels[result.rows],
            "points_world": result.points_world,
            "observations": result.observations,
            "shifts": self._shifts(views, result),
        }

    def _shifts(self, views: list[int], result: triangulation.TriangulatedPoints) -> np.ndarray:
        """(P, M, 3) the changes of the points with the map's calibration modes."""
        images = [self.map.images[index] for index in views]
        if not self.map.knows_calibration:
            return np.zeros((len(result.rows), 0, 3))
        return point_shifts(
            result.points_world,
            result.tracks,
            result.track_pixels,
            np.stack([image.camera.K for image in images]),
            np.array([image.camera.first_radial for image in images]),
            np.stack([image.cam_from_world for image in images]),
            np.stack([image.modes for image in images]),
        )

    def _pair(self, first: int, second: int) -> Matches:
        """The matches of two map images, without static ones."""
        if not isinstance(self.matcher, FeatureMatcher):
            # a dense matcher compares the pixels of its first photo, which here is the map image, as with a query
            return self._match_images(first, second)
        one, two = sorted((first, second))
        key = self.map.images[one].file, self.map.images[two].file
        pair = self._matches.get(key, lambda: self._match_images(one, two))
        return pair if first == one else pair.swapped()

    def _match_images(self, first: int, second: int) -> Matches:
        if isinstance(self.matcher, CacheableMatcher):
            matches = self.matcher.match_features(self.features(first), self.features(second))
        else:
            matches = self.matcher.match(self._photo(first).rgb, self._photo(second).rgb)
        return without_static_matches(matches, self._thumbnail(first), self._thumbnail(second), self.config.seed)


def matching_neighbours(photo_map: PhotoMap, index: int, count: int) -> list[int]:
    """At most `count` images to match image `index` with: those that share points with it; of a map without points,
    those nearby with a similar viewing direction. Half of them are the best ones, half are spread over the further
    ones, for their wider angles."""
    images = photo_map.images
    ranked = list(images[index].neighbours)
    if not ranked:
        own = images[index].world_from_cam
        others = [i for i in range(len(images)) if i != index]
        distance = np.array([np.linalg.norm(images[i].world_from_cam[:3, 3] - own[:3, 3]) for i in others])
        angle = np.array([vector_angle(images[i].world_from_cam[:3, 2], own[:3, 2]) for i in others])
        cost = distance / max(photo_map.extent, 1e-12) + angle / MAX_ROTATION
        ranked = [others[i] for i in np.argsort(cost, kind="stable")][: 4 * count]
    if len(ranked) <= count:
        return ranked
    best = count - count // 2
    further = np.linspace(best, len(ranked) - 1, count - best)
    return ranked[:best] + [ranked[i] for i in np.unique(np.rint(further).astype(int))]


def _read_checked(image: MapImage) -> Photo:
    photo = read_photo(image.file)
    width, height = image.camera.width, image.camera.height
    if (photo.width, photo.height) != (width, height):
        raise UserError(
            f"the map's photo {image.file} has {photo.width} x {photo.height} px, but the model says "
            f"{width} x {height}; name the folder of the photos it was made of with --images"
        )
    return photo


def _best_per_row(rows: np.ndarray, scores: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Of equal `rows` the index of the usable one with the highest score."""
    order = np.flatnonzero(usable)[np.argsort(-scores[usable], kind="stable")]
    return order[np.unique(rows[order], return_index=True)[1]]
