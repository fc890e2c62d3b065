"""Photos with their matches and the models that the mapper made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.provenance import Source
from dune_cli.sfm.features import ImageFeatures
from dune_cli.sfm.mapper import Draft
from dune_cli.sfm.scene import SfmModel
from dune_cli.tasks.reconstruct.matched_again import with_neighbours
from dune_cli.tasks.reconstruct.matched_photos import MatchedPhotos

HELD_BY_POINTS = 30  # a photo that sees fewer points is matched again


@dataclass(frozen=True)
class MappedPhotos:
    """Photos matched by the `matcher`, their features, and the models, largest first; `sources`: of all matches.
    `draft`: the models are those of one run of the mapper, not calibrated yet. `given_up`: the verified pairs that the
    models were made without, as heavier ones contradict them."""

    matched: MatchedPhotos
    images: Sequence[ImageFeatures]
    models: Sequence[SfmModel]
    matcher: CacheableMatcher
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    draft: Draft | None = None
    given_up: frozenset[tuple[int, int]] = frozenset()

    @property
    def placed(self) -> set[int]:
        return set(self.models[0].world_from_cam) if self.models else set()

    @property
    def left_out(self) -> list[int]:
        """The photos without a pose, or with one that few points hold, which are no copies. Half as many points do
        where enough inliers of verified pairs hold the photo as well."""
        seen = self.models[0].observations if self.models else {}
        rigs = self.matched.cameras.rigs
        points = {index: len(seen[index][0]) for index in self.placed if index in seen}
        of_frame = {i: sum(points.get(other, 0) for other in rigs.of_frame(i)) for i in self.placed}
        held = {index for index, count in of_frame.items() if count >= HELD_BY_POINTS}
        tied = with_neighbours(held, self.matched.verified)
        held |= {index for index, count in of_frame.items() if 2 * count >= HELD_BY_POINTS and index in tied}
        return [
            index for index in range(len(self.images)) if index not in held and index not in self.matched.duplicates
        ]
