"""What a map's photos show: keypoints and their points in the world, found when they are first needed, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from dune_cli.errors import UserError
from dune_cli.geometry import triangulation
from dune_cli.geometry.bundle_adjustment import point_shifts
from dune_cli.geometry.poses import vector_angle
from dune_cli.io.cache import WorkFolder, key_of
from dune_cli.io.photos import Photo, read_photo
from dune_cli.matchers.filtering import Thumbnail, non_static_matches
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher, Matches
from dune_cli.sfm.photo_map import MapImage, PhotoMap

FAR_TURNED = np.radians(45)  # weighs as much as the whole extent of the map
FORMAT = 3  # of the files in the work folder; another number makes them anew
POINTS_LAYOUT = {
    "pixels": ("f", ("P", 2)),
    "points_world": ("f", ("P", 3)),
    "observations": ("iu", ("P",)),
    "shifts": ("f", ("P", "M", 3)),
}
T = TypeVar("T")


@dataclass(frozen=True)
class LandmarkConfig:
    """`neighbours`: with how many other photos each is matched. `threshold` of a point in pixels of the matched photos;
    `min_angle_deg` at which its rays meet; `seed` of the random sampling."""

    neighbours: int = 8
    threshold: float = 4.0
    min_angle_deg: float = triangulation.MIN_ANGLE_DEG
    seed: int = 0


@dataclass(frozen=True)
class ImageLandmarks:
    """A map photo's points: seen at `pixels` (P, 2) of it, `points_world` (P, 3), by `observations` (P,) photos.
    `shifts` (P, M, 3): where they go with each of the map's modes (none where it has none)."""

    pixels: np.ndarray
    points_world: np.ndarray
    observations: np.ndarray
    shifts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))

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


class Landmarks:
    """A map as one matcher sees it."""

    def __init__(self, photo_map: PhotoMap, matcher: Matcher, config: LandmarkConfig, work: WorkFolder) -> None:
        self.map, self.matcher, self.config, self.work = photo_map, matcher, config, work
        # both keyed by files, so that maps of the same photos can share them
        self._features: _Recent[Any] = _Recent(64)
        self._matches: _Recent[Matches] = _Recent(256)
        self._points: _Recent[ImageLandmarks] = _Recent(4096)
        self._thumbnails: _Recent[Thumbnail] = _Recent(4096)

    def without(self, index: int) -> Landmarks:
        """The map without image `index`; what was seen in the others is not looked at again."""
        images = tuple(
            replace(image, neighbours=tuple(n - (n > index) for n in image.neighbours if n != index))
            for i, image in enumerate(self.map.images)
            if i != index
        )
        smaller = Landmarks(replace(self.map, images=images), self.matcher, self.config, self.work)
        smaller._features, smaller._matches = self._features, self._matches
        smaller._thumbnails = self._thumbnails
        return smaller

    def remember(self, index: int, features: Any, rgb: np.ndarray) -> None:
        """What `seen` would find of map image `index`, and its pixels (H, W, 3), from who knows them already."""
        self._thumbnails.get(self.map.images[index].file, lambda: Thumbnail.of(rgb))
        self._features.get(self.map.images[index].file, lambda: features)

    def match(self, index: int, photo: Photo, features: Any) -> Matches:
        """Matches of map image `index` (first) with a photo and what `look` saw in it, without those of captions and
        the like, which lie at the same pixels of both."""
        if isinstance(self.matcher, CacheableMatcher):
            found = self.matcher.match_features(self.seen(index), features)
        else:
            found = self.matcher.match(self.seen(index), photo.rgb)
        image = self.map.images[index]
        return self._moving(found, image, (photo.width, photo.height), lambda: Thumbnail.of(photo.rgb))

    def look(self, photo: Photo, turns: int = 0) -> Any:
        """What a photo's matches are made of, after `turns` quarter turns clockwise; None with a matcher that only
        looks at pairs."""
        return self.matcher.extract_rotated(photo.rgb, turns) if isinstance(self.matcher, CacheableMatcher) else None

    def _moving(
        self, found: Matches, image: MapImage, size: tuple[int, int], thumbnail: Callable[[], Thumbnail]
    ) -> Matches:
        keep = non_static_matches(
            found.points1,
            found.points2,
            ((image.camera.width, image.camera.height), size),
            (found.pixel_size1, found.pixel_size2),
            lambda: (self._thumbnail(image), thumbnail()),
            self.config.seed,
        )
        return found.select(keep)

    def _thumbnail(self, image: MapImage) -> Thumbnail:
        return self._thumbnails.get(image.file, lambda: Thumbnail.of(_read(image).rgb))

    def seen(self, index: int) -> Any:
        """The features of map image `index`; for a matcher without any, its pixels. UserError for a photo that cannot
        be read or is not of the model's camera."""
        image = self.map.images[index]
        return self._features.get(image.file, lambda: self._seen(image))

    def points(self, index: int) -> ImageLandmarks:
        """The points of map image `index`."""
        return self._points.get(index, lambda: self._kept_points(index))

    def _seen(self, image: MapImage) -> Any:
        if not isinstance(self.matcher, CacheableMatcher):
            return _read(image).rgb
        # also the first time as they are kept, so that a second run sees the same
        packed = self.work.arrays(
            "features",
            lambda: key_of(FORMAT, *self._of_matcher(), image.sha256),
            lambda: self.matcher.pack(self.look(_read(image))),
            self.matcher.packed_layout,
        )
        return self.matcher.unpack(packed)

    def _of_matcher(self) -> list[Any]:
        return [self.matcher.name, self.matcher.working_size_px, self.matcher.source.name, self.matcher.source.sha256]

    def _kept_points(self, index: int) -> ImageLandmarks:
        star = [index, *matching_neighbours(self.map, index, self.config.neighbours)]
        arrays = self.work.arrays("points", lambda: self._key(star), lambda: self._triangulated(star), POINTS_LAYOUT)
        return ImageLandmarks(**arrays)

    def _key(self, star: list[int]) -> str:
        """Changes with whatever the points follow from."""
        images = [self.map.images[i] for i in star]
        poses = [(i.sha256, i.camera.model, i.camera.params, np.round(i.world_from_cam, 12).tolist()) for i in images]
        modes = [None if image.modes is None else np.round(image.modes, 12).tolist() for image in images]
        return key_of(FORMAT, *self._of_matcher(), asdict(self.config), poses, modes)

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
            straight = image.camera.undistort(pair.points2)
            best = _best_of_each(rows, pair.scores, np.isfinite(straight).all(-1))
            rays.append(
                triangulation.ViewObservations(
                    rows[best], straight[best], image.camera.K, image.cam_from_world, pair.pixel_size2
                )
            )
        straight = first.camera.undistort(pixels)
        found = triangulation.triangulate_with_known_poses(
            np.nan_to_num(straight, nan=-1e6),  # no ray meets a pixel so far out
            first.camera.K,
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
            "shifts": self._shifts(star, found),
        }

    def _shifts(self, star: list[int], found: triangulation.TriangulatedPoints) -> np.ndarray:
        """(P, M, 3) where the points of the first of `star` go with the map's modes."""
        images = [self.map.images[index] for index in star]
        if not self.map.knows_calibration:
            return np.zeros((len(found.rows), 0, 3))
        return point_shifts(
            found.points_world,
            found.tracks,
            found.track_pixels,
            np.stack([image.camera.K for image in images]),
            np.array([image.camera.radial_term for image in images]),
            np.stack([image.cam_from_world for image in images]),
            np.stack([image.modes for image in images]),
        )

    def _pair(self, first: int, second: int) -> Matches:
        if not isinstance(self.matcher, FeatureMatcher):
            # the places that a dense matcher compares are those of the first photo, as when a query is second
            return self._matched(first, second)
        one, two = sorted((first, second))
        key = self.map.images[one].file, self.map.images[two].file
        pair = self._matches.get(key, lambda: self._matched(one, two))
        return pair if first == one else _swapped(pair)

    def _matched(self, first: int, second: int) -> Matches:
        match = self.matcher.match_features if isinstance(self.matcher, CacheableMatcher) else self.matcher.match
        one, two = (self.map.images[index] for index in (first, second))
        found = match(self.seen(first), self.seen(second))
        return self._moving(found, one, (two.camera.width, two.camera.height), lambda: self._thumbnail(two))


def matching_neighbours(photo_map: PhotoMap, index: int, count: int) -> list[int]:
    """Images to match image `index` with: those that share points with it, without points those that look from nearby
    in a like direction. Half of them the best ones, half spread over the further ones, for their wider angles."""
    images = photo_map.images
    ranked = list(images[index].neighbours)
    if not ranked:
        own = images[index].world_from_cam
        others = [i for i in range(len(images)) if i != index]
        apart = np.array([np.linalg.norm(images[i].world_from_cam[:3, 3] - own[:3, 3]) for i in others])
        turned = np.array([vector_angle(images[i].world_from_cam[:3, 2], own[:3, 2]) for i in others])
        cost = apart / max(photo_map.extent, 1e-12) + turned / FAR_TURNED
        ranked = [others[i] for i in np.argsort(cost, kind="stable")][: 4 * count]
    if len(ranked) <= count:
        return ranked
    best = count - count // 2
    further = np.linspace(best, len(ranked) - 1, count - best)
    return ranked[:best] + [ranked[i] for i in np.unique(np.rint(further).astype(int))]


def _read(image: MapImage) -> Photo:
    photo = read_photo(image.file)
    width, height = image.camera.upright_size
    if (photo.width, photo.height) != (width, height):
        raise UserError(
            f"the map's photo {image.file} has {photo.width} x {photo.height} px, but the model says "
            f"{width} x {height}; name the folder of the photos it was made of with --images"
        )
    return photo


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
