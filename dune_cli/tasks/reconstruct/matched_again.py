"""A second matcher for the photos that the first one leaves out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dune_cli.geometry import view_graph
from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.provenance import Run
from dune_cli.sfm.features import ImageFeatures, extract_features
from dune_cli.sfm.pairs import Pairs
from dune_cli.sfm.retrieval import subtract_mean
from dune_cli.sfm.verification import VerifiedPairs, rotate_disconnected_components, verify_pairs
from dune_cli.tasks.reconstruct.config import MatchesConfig
from dune_cli.tasks.reconstruct.matched_photos import (
    MatchedPhotos,
    match_unmasked,
    select_photo_pairs,
    thumbnails_of,
)

PAIRS_A_ROUND = 3  # of a photo
ENOUGH_PAIRS, ENOUGH_INLIERS = 2, 60  # of a photo, verified with photos that are held, which hold it as well


@dataclass
class SecondMatcher:
    """Matches photos by another `matcher` than the one that `matched` all of them, with the `images` of that one.

    Each pair takes the second matcher long. So a photo is matched with the most similar ones that are held by the
    scene, a few at a time until it is held too, and then helps to hold its own neighbours.
    """

    matched: MatchedPhotos
    images: Sequence[ImageFeatures]
    matcher: CacheableMatcher
    config: MatchesConfig
    run: Run
    cache: WorkFolder
    own_images: dict[int, ImageFeatures] = field(default_factory=dict)  # of this matcher
    tried: set[tuple[int, int]] = field(default_factory=set)
    found: VerifiedPairs = field(default_factory=lambda: VerifiedPairs({}, {}))

    def match(self, left_out: Collection[int], every: bool = False) -> tuple[MatchedPhotos, Sequence[ImageFeatures]]:
        """The photos with the matches of pairs with a photo of `left_out` added, in rounds or `every` one at once, to
        those of earlier calls; and with those of the verified pairs of the photos that these agree with, whose points
        in space they need.

        The pairs are the selected ones and, where the photos have global descriptors, those that these retrieve. Also
        the features, of this matcher where it has extracted them.
        """
        candidates = self._candidates(left_out)
        if every:
            self._try(sorted({pair for pairs in candidates.values() for pair in pairs} - self.tried))
        while not every and (pairs := self._next_pairs(left_out, candidates)):
            self._try(pairs)
        pairs, known = sorted(self.tried), self.matched.verified
        with self.run.stage("rotate"):
            again = rotate_disconnected_components(
                self._all_images(),
                pairs,
                known.joined(self.found),
                self.matched.duplicates,
                self.matcher,
                self.cache,
                self.config.seed,
            )
        links = _links(self.found, known)
        with self.run.stage("match"):
            correspondences, masked = match_unmasked(
                again, sorted({*pairs, *links}), self.matcher, self.config, self.cache
            )
        both = self.matched.correspondences.joined(correspondences)
        with self.run.stage("verify"):
            own = replace(both, matches={pair: both.matches[pair] for pair in correspondences.matches})
            verified = verify_pairs(own, self.matched.cameras, self.config.seed, thumbnails_of(self.images))
        if masked is not None and self.matched.masked is not None:
            masked = self.matched.masked.joined(masked)
        return replace(self.matched, correspondences=both, verified=known.joined(verified), masked=masked), again

    def _candidates(self, left_out: Collection[int]) -> dict[int, Pairs]:
        """The pairs of each photo of `left_out`, the most similar photos first."""
        images, counts = self.images, self.matched.verified.counts
        selected = set(self.matched.pairs)
        rows = [image.descriptor for image in images if image.descriptor is not None]
        similar = subtract_mean(np.stack(rows)) if len(rows) == len(images) > 2 else None
        if similar is not None:
            by_retrieval = replace(self.config, pairs="retrieval")
            duplicates = self.matched.duplicates
            selected.update(select_photo_pairs(images, duplicates, self.matcher, by_retrieval, self.cache).pairs)

        def rank(pair: tuple[int, int]) -> tuple[float, tuple[int, int]]:
            matches = counts.get(pair, (0, 0))[0]
            return -(matches if similar is None else float(similar[pair[0]] @ similar[pair[1]])), pair

        return {index: sorted((pair for pair in selected if index in pair), key=rank) for index in sorted(left_out)}

    def _next_pairs(self, left_out: Collection[int], candidates: Mapping[int, Pairs]) -> Pairs:
        """The next pairs of photos that are not held with such as are; first of those whose most similar photos are."""
        held = self._held(left_out)
        waiting: dict[int, Pairs] = {}
        ready: dict[int, Pairs] = {}
        for index, pairs in candidates.items():
            with_held = [sum(pair) - index in held for pair in pairs]
            new = [pair for pair, fits in zip(pairs, with_held) if fits and pair not in self.tried][:PAIRS_A_ROUND]
            if index not in held and new:
                waiting[index] = new
                if 2 * sum(with_held[: 2 * ENOUGH_PAIRS]) >= len(with_held[: 2 * ENOUGH_PAIRS]):
                    ready[index] = new
        return sorted({pair for pairs in (ready or waiting).values() for pair in pairs})

    def _held(self, left_out: Collection[int]) -> set[int]:
        """The photos that are not left out, and those that these hold."""
        firm = set(range(len(self.images))) - set(left_out)
        return with_neighbours(firm, self.matched.verified.joined(self.found))

    def _try(self, pairs: Pairs) -> None:
        with self.run.stage("match"):
            correspondences, _ = match_unmasked(self._all_images(pairs), pairs, self.matcher, self.config, self.cache)
        with self.run.stage("verify"):
            thumbnails = thumbnails_of(self.images)
            verified = verify_pairs(correspondences, self.matched.cameras, self.config.seed, thumbnails)
        self.found = self.found.joined(verified)
        self.tried.update(pairs)

    def _all_images(self, pairs: Pairs = ()) -> list[ImageFeatures]:
        """The features of all photos, of this matcher for those of the `pairs` and of earlier ones."""
        new = sorted({index for pair in pairs for index in pair} - set(self.own_images))
        with self.run.stage("features"):
            found = extract_features([self.images[index].info.path for index in new], self.matcher, self.cache)
        self.own_images.update(zip(new, found))
        return [self.own_images.get(index, image) for index, image in enumerate(self.images)]


def weakly_tied(verified: VerifiedPairs, count: int, copies: Collection[int] = ()) -> list[int]:
    """Those of `count` photos that too few inliers of verified pairs tie to the largest component of well tied ones,
    without the `copies`."""
    strong = [pair for pair in verified.geometry if verified.counts[pair][1] >= ENOUGH_INLIERS]
    components = view_graph.components(count, np.array(strong, np.int64).reshape(-1, 2))
    held = with_neighbours(set(components[0].tolist()), verified)
    return [index for index in range(count) if index not in held and index not in copies]


def with_neighbours(firm: Collection[int], verified: VerifiedPairs) -> set[int]:
    """The `firm` photos, and those that enough inliers of enough pairs tie to such as are held."""
    partners, held = verified.inliers_by_photo(), set(firm)
    while True:
        new = set()
        for index, inliers in partners.items():
            own = [count for other, count in inliers.items() if other in held]
            if index not in held and len(own) >= ENOUGH_PAIRS and sum(own) >= ENOUGH_INLIERS:
                new.add(index)
        if not new:
            return held
        held |= new


def _links(found: VerifiedPairs, known: VerifiedPairs) -> Pairs:
    """The `known` pairs of photos that both agree with a third one in a pair `found`, or are such a pair."""
    groups = [{index, *partners} for index, partners in found.inliers_by_photo().items()]
    return [pair for pair in known.geometry if any(group.issuperset(pair) for group in groups)]
