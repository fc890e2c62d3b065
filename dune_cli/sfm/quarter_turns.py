"""Photos that lie on their side or their head: those that hang together with nothing are matched again after quarter
turns, where the matcher takes photos upright only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli.io.cache import WorkFolder
from dune_cli.matchers.filtering import TURNS, VERIFIED, verify
from dune_cli.matchers.matcher import CacheableMatcher
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_turned
from dune_cli.sfm.pairs import Pairs
from dune_cli.sfm.verification import Verified

PHOTOS_A_GROUP, PARTNERS = 2, 3  # that are tried of each group


def match_quarter_turns(
    looks: Sequence[ImageFeatures],
    pairs: Pairs,
    verified: Verified,
    same: Mapping[int, int],
    matcher: CacheableMatcher,
    work: WorkFolder,
    seed: int,
) -> list[ImageFeatures]:
    """The photos, those of groups that hang together with the largest one only after a quarter turn looked at again so
    (`Looked.turns`). A group has all its photos turned alike."""
    looks = list(looks)
    if matcher.turn_invariant:
        return looks
    shelf = FeatureStore(matcher, work)
    groups = _groups(len(looks), verified, same)
    joined = set(groups[0])
    for group in groups[1:]:
        turns = _turns_of(group, joined, looks, pairs, verified, matcher, shelf, work, seed)
        if turns:
            for index in group:
                looks[index] = extract_turned(looks[index], turns, matcher, work)
            joined |= set(group)
    return looks


def _groups(count: int, verified: Verified, same: Mapping[int, int]) -> list[list[int]]:
    """Photos that hang together, copies left out, the largest group first."""
    edges = np.array(list(verified.geometry), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    total, label = connected_components(graph, directed=False)
    groups = [[int(i) for i in np.flatnonzero(label == group) if int(i) not in same] for group in range(total)]
    return sorted((group for group in groups if group), key=lambda group: (-len(group), group[0]))


def _turns_of(
    group: Sequence[int],
    joined: set[int],
    looks: Sequence[ImageFeatures],
    pairs: Pairs,
    verified: Verified,
    matcher: CacheableMatcher,
    shelf: FeatureStore,
    work: WorkFolder,
    seed: int,
) -> int:
    """The quarter turns (1 to 3) after which photos of the group verify with `joined` ones; 0 for none."""
    partners: dict[int, list[int]] = {}
    for i, j in pairs:
        for own, other in ((i, j), (j, i)):
            if own in group and other in joined:
                partners.setdefault(own, []).append(other)
    for own in sorted(partners, key=lambda index: (-len(partners[index]), index))[:PHOTOS_A_GROUP]:
        others = sorted(partners[own], key=lambda other: -_matches(verified, own, other))[:PARTNERS]
        found = np.zeros(TURNS, dtype=int)
        for turns in range(1, TURNS):
            turned = shelf.take(extract_turned(looks[own], turns, matcher, work))
            for other in others:
                matches = replace(matcher.match_features(shelf.take(looks[other]), turned), tries=TURNS)
                sizes = [(look.facts.width, look.facts.height) for look in (looks[other], looks[own])]
                inliers, chance = verify(matches, *sizes, seed)
                found[turns] += inliers if chance <= VERIFIED else 0
        if found.any():
            return int(found.argmax())
    return 0


def _matches(verified: Verified, one: int, two: int) -> int:
    return verified.counts.get((min(one, two), max(one, two)), (0, 0))[0]
