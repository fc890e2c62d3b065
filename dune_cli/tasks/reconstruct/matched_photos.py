"""Photos, matched: features, selected pairs, their correspondences, verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as memoized
from functools import cached_property

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import Run
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.features import FeatureStore, ImageFeatures
from dune_cli.sfm.matching import Correspondences, match_pairs
from dune_cli.sfm.pairs import (
    EXHAUSTIVE_UP_TO,
    LARGEST,
    PREEMPTIVE_UP_TO,
    STRATEGIES,
    Pairs,
    PairSelection,
    exhaustive_pairs,
    preemptive_match_counts,
    read_pairs,
    select_pairs,
)
from dune_cli.sfm.pure_rotations import PureRotations, find_pure_rotations
from dune_cli.sfm.retrieval import vlad_descriptors
from dune_cli.sfm.scene import MaskedKeypoints
from dune_cli.sfm.verification import (
    VerifiedPairs,
    rotate_disconnected_components,
    verify_pairs,
)
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig

NAMES_IN_NOTE = 3


class OnlyTurned(JobFailed):
    """No parallax: the camera turned on the spot between `photos` of the photos, and none of the others connect."""

    def __init__(self, message: str, photos: int) -> None:
        super().__init__(message)
        self.photos = photos


@dataclass(frozen=True)
class MatchedPhotos:
    """Photos with their `own` and shared `cameras`; `duplicates`, each with the earlier photo whose file it equals; the
    selected `pairs`, the correspondences, the verified pairs, and what was masked; `hardly_moved`: the pairs between
    which the camera rotated and hardly moved. Photos go by their index."""

    photos: Sequence[PhotoInfo]
    own: Sequence[PhotoCamera]
    cameras: PhotoCameras
    duplicates: Mapping[int, int]
    pairs: Pairs
    correspondences: Correspondences
    verified: VerifiedPairs
    masked: MaskedKeypoints | None = None
    given_names: tuple[str, ...] | None = None
    hardly_moved: PureRotations = field(default_factory=PureRotations)

    @cached_property
    def names(self) -> list[str]:
        if self.given_names is not None:
            return list(self.given_names)
        return relative_names([photo.path for photo in self.photos])


def match_photos(
    images: Sequence[ImageFeatures],
    cameras_of: CamerasOf,
    matcher: CacheableMatcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder,
) -> tuple[MatchedPhotos, Sequence[ImageFeatures]]:
    """The verified matches of selected pairs; and the features, in which photos that connect to others only after
    quarter turns are rotated."""
    photos = [image.info for image in images]
    duplicates = _duplicates(photos)
    if len(photos) - len(duplicates) == 1:
        raise JobFailed(f"all {len(photos)} photos are the same picture; take photos from different places")
    own = cameras_of(photos)
    cameras = share_cameras(own, config.rigs)
    with run.stage("pair"):
        selection = select_photo_pairs(images, duplicates, matcher, config, cache)
    console.note(f"{len(images)} photos, {len(selection.pairs)} pairs ({selection.strategy})")
    pairs = selection.pairs
    if not pairs:
        raise JobFailed("all photos were taken from one place; take photos from different places")
    images, found, verified, masked = _match(images, pairs, cameras, duplicates, matcher, config, run, cache)
    matched = MatchedPhotos(photos, own, cameras, duplicates, pairs, found, verified, masked, config.names)
    return matched, images


def _match(
    images: Sequence[ImageFeatures],
    pairs: Pairs,
    cameras: PhotoCameras,
    duplicates: Mapping[int, int],
    matcher: CacheableMatcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder,
) -> tuple[Sequence[ImageFeatures], Correspondences, VerifiedPairs, MaskedKeypoints | None]:
    """The features, correspondences, verified pairs, and what was masked. Photos that verify with nothing are rotated
    where they verify then."""
    with run.stage("match"):
        correspondences, masked = match_unmasked(images, pairs, matcher, config, cache)
    with run.stage("verify"):
        verified = verify_pairs(correspondences, cameras, config.seed, thumbnails_of(images))
    with run.stage("rotate"):
        rotated = rotate_disconnected_components(images, pairs, verified, duplicates, matcher, cache, config.seed)
        if note := rotation_note(rotated):
            console.note(note)
            correspondences, masked = match_unmasked(rotated, pairs, matcher, config, cache)
            verified = verify_pairs(correspondences, cameras, config.seed, thumbnails_of(images))
    return rotated, correspondences, verified, masked


def match_unmasked(
    images: Sequence[ImageFeatures],
    pairs: Pairs,
    matcher: CacheableMatcher,
    config: MatchesConfig,
    cache: WorkFolder,
) -> tuple[Correspondences, MaskedKeypoints | None]:
    """The matches of the pairs, without masked ones, and what was masked."""
    correspondences = match_pairs(images, pairs, matcher, cache)
    if config.masks is None:
        return correspondences, None
    return config.masks.without_masked(correspondences, [image.info.path for image in images])


def thumbnails_of(images: Sequence[ImageFeatures]) -> Callable[[int], Thumbnail]:
    return memoized(lambda index: Thumbnail.of(read_photo(images[index].info.path).rgb))


def uses_descriptors(count: int, matcher: Matcher, config: MatchesConfig) -> bool:
    """Whether the pairs of `count` photos are retrieved by global descriptors."""
    if config.pairs != "auto":
        return config.pairs == "retrieval"
    return count > EXHAUSTIVE_UP_TO and not _uses_largest_keypoints(count, matcher, config)


def _uses_largest_keypoints(count: int, matcher: Matcher, config: MatchesConfig) -> bool:
    """Whether the matches of the largest keypoints choose the pairs, where auto does not take all."""
    by_size = isinstance(matcher, FeatureMatcher) and matcher.largest_first
    return by_size and count <= PREEMPTIVE_UP_TO and not config.by_descriptors


def _duplicates(photos: Sequence[PhotoInfo]) -> dict[int, int]:
    """Photos whose file equals that of an earlier one -> that one."""
    first: dict[str, int] = {}
    return {i: first[photo.sha256] for i, photo in enumerate(photos) if first.setdefault(photo.sha256, i) != i}


def select_photo_pairs(
    images: Sequence[ImageFeatures],
    duplicates: Mapping[int, int],
    matcher: Matcher,
    config: MatchesConfig,
    cache: WorkFolder,
) -> PairSelection:
    """Pairs of the photos that are no duplicates; in a user's list a duplicate stands for its first photo."""
    paths = [image.info.path for image in images]
    if config.pairs not in STRATEGIES:
        named = [(duplicates.get(i, i), duplicates.get(j, j)) for i, j in read_pairs(config.pairs, paths)]
        pairs = config.rigs.apart(sorted({(min(pair), max(pair)) for pair in named if pair[0] != pair[1]}))
        return PairSelection(pairs, f"from {config.pairs}")
    distinct = [index for index in range(len(images)) if index not in duplicates]
    rigs = config.rigs.renumbered({index: row for row, index in enumerate(distinct)})

    def by_keypoints() -> np.ndarray:
        assert isinstance(matcher, FeatureMatcher)
        counts = largest_match_counts([images[index] for index in distinct], matcher, cache)
        for photos in rigs.frames.values():  # what overlaps about one centre says nothing about other frames
            for i, j in exhaustive_pairs(len(photos)):
                if not rigs.apart([(photos[i], photos[j])]):
                    counts[photos[i], photos[j]] = counts[photos[j], photos[i]] = 0
        return counts

    selection = select_pairs(
        config.pairs,
        [paths[index] for index in distinct],
        config.neighbours,
        config.ordered,
        lambda: _global_descriptors([images[index] for index in distinct], matcher, cache, config.seed),
        by_keypoints if _uses_largest_keypoints(len(images), matcher, config) else None,
        rigs,
    )
    return PairSelection([(distinct[i], distinct[j]) for i, j in selection.pairs], selection.strategy)


def largest_match_counts(images: Sequence[ImageFeatures], matcher: FeatureMatcher, cache: WorkFolder) -> np.ndarray:
    """The `preemptive_match_counts` (N, N) of photos."""
    store = FeatureStore(matcher, cache)
    return preemptive_match_counts([store.descriptors(image)[: LARGEST[1]].copy() for image in images])


def _global_descriptors(images: Sequence[ImageFeatures], matcher: Matcher, cache: WorkFolder, seed: int) -> np.ndarray:
    rows = [image.descriptor for image in images if image.descriptor is not None]
    if len(rows) == len(images):
        return np.stack(rows)
    if not isinstance(matcher, FeatureMatcher):
        raise UserError(
            f"{len(images)} photos need an encoder to choose pairs, and the matcher {matcher.name} has no keypoints to "
            "do it with; name one with --retrieval-model, or give --pairs sequential, all or a file"
        )
    store = FeatureStore(matcher, cache)
    return vlad_descriptors(len(images), lambda i: store.descriptors(images[i]), seed)


def rotation_note(images: Sequence[ImageFeatures]) -> str:
    """Which photos were rotated for matching; empty for none."""
    parts = []
    for quarter_turns in sorted({image.quarter_turns for image in images} - {0}):
        names = [image.info.path.name for image in images if image.quarter_turns == quarter_turns]
        more = f" and {len(names) - NAMES_IN_NOTE} more" if len(names) > NAMES_IN_NOTE else ""
        degrees = f"rotated clockwise by {90 * quarter_turns} degrees for matching"
        parts.append(f"{', '.join(names[:NAMES_IN_NOTE])}{more} were {degrees}")
    return "; ".join(parts)


def without_pure_rotations(matched: MatchedPhotos) -> MatchedPhotos:
    """Without the connected components whose camera only rotated; OnlyTurned where no other component is left."""
    verified = matched.verified
    rotations, little = find_pure_rotations(matched.correspondences, verified, matched.cameras)
    matched = replace(matched, hardly_moved=little)
    if not rotations.pairs:
        return matched
    rest = {pair: geometry for pair, geometry in verified.geometry.items() if pair not in rotations.pairs}
    if not rest:
        photos = len({index for pair in rotations.pairs for index in pair})
        raise OnlyTurned(
            f"the camera only turned between the photos: turning it on the spot explains {rotations.explained} of "
            f"{rotations.matches} matches of the {photos} photos that connect, so depth cannot be seen; move it "
            "between photos, a step to the side of about a tenth of the distance",
            photos + len(matched.duplicates),
        )
    pure_rotations = verified.pure_rotations | rotations.pairs
    return replace(matched, verified=replace(verified, geometry=rest, pure_rotations=pure_rotations))


def hardly_moved_notes(matched: MatchedPhotos, placed: int) -> list[str]:
    """That the camera hardly moved, where it may be the cause that less than half of the photos are `placed`."""
    photos = {index for pair in matched.hardly_moved.pairs for index in pair}
    if 2 * placed >= len(matched.photos) or 2 * len(photos) < len(matched.photos):
        return []
    return [
        f"the camera hardly moved between {len(photos)} of the {len(matched.photos)} photos: turning it on the spot "
        f"explains {matched.hardly_moved.explained} of {matched.hardly_moved.matches} matches, so the scene is likely "
        "to be wrong; move it between photos, a step to the side of about a tenth of the distance"
    ]
