"""Where of many photos only two hang together: their scene, as `dune reconstruct` makes it of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dune_cli.errors import JobFailed
from dune_cli.io.names import relative_names
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.io.texts import agreement
from dune_cli.io.work_folder import WorkFolder
from dune_cli.matchers.base import SplitMatcher
from dune_cli.provenance import Run
from dune_cli.tasks.reconstruct import matches as two_views
from dune_cli.tasks.reconstruct.assemble import NOWHERE, photo_groups, why_missing
from dune_cli.tasks.reconstruct.gallery import FeatureShelf, Looked
from dune_cli.tasks.reconstruct.mapping import Mapped
from dune_cli.tasks.reconstruct.scene import Scene, View
from dune_cli.tasks.reconstruct.verification import Verified

PAIRS_TO_TRY = 3


def two_of_many(
    facts: Sequence[PhotoFacts],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    verified: Verified,
    models: Sequence[Mapped],
    same: Mapping[int, int],
    matcher: SplitMatcher,
    looks: Sequence[Looked],
    settings: two_views.MatchesConfig,
    work: WorkFolder,
    run: Run,
) -> Scene:
    """Where no three photos hang together: the scene of two of them, as `dune reconstruct` makes it of a pair.

    JobFailed where no pair gives one.
    """
    ranked = sorted(verified.geometry, key=lambda pair: -verified.counts[pair][1])
    if models:
        pair = tuple(sorted(models[0].world_from_cam))
        ranked = [pair] + [other for other in ranked if other != pair]
    shelf = FeatureShelf(matcher, work)
    failures = []
    for pair in ranked[:PAIRS_TO_TRY]:
        photos = [read_photo(facts[index].path) for index in pair]
        matches = matcher.match_features(*(shelf.take(looks[index]) for index in pair))
        own = settings if pair == (0, 1) else replace(settings, baseline=None)
        try:
            scene = two_views.reconstruct_matched(
                photos, [intrinsics[index] for index in pair], matches, matcher.source, own, run
            )
        except JobFailed as error:
            failures.append(str(error))
            continue
        return _among(scene, pair, facts, intrinsics, verified, same)
    if failures:
        raise JobFailed(f"no three of the {len(facts)} photos hang together, and the best pair fails: {failures[0]}")
    if verified.fixed and not verified.geometry:
        pair = max(verified.fixed, key=lambda pair: verified.fixed[pair])
        one, two = (facts[index].path.name for index in pair)
        raise JobFailed(
            f"no two of the {len(facts)} photos agree in more than what lies at the same pixels of both: {one} and "
            f"{two} have {verified.fixed[pair]} such matches (a caption, a logo, a border or a part of the mount), "
            "which tell nothing of how the camera moved; crop it away, and take photos that overlap by half or more"
        )
    pair = max(verified.counts, key=lambda pair: verified.counts[pair])
    matches, inliers = verified.counts[pair]
    names = relative_names([photo.path for photo in facts])
    one, two = (names[index] for index in pair)
    raise JobFailed(
        f"no two of the {len(facts)} photos show enough of the same place: {one} and {two}, the best pair, have "
        f"{agreement(matches, inliers, 'a motion')}; take photos that overlap by half or more, or try "
        "another --matcher"
    )


def _among(
    scene: Scene,
    pair: tuple[int, int],
    facts: Sequence[PhotoFacts],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    verified: Verified,
    same: Mapping[int, int],
) -> Scene:
    """The scene of a `pair` as one of all photos, the others not placed."""
    assert scene.sparse is not None
    views, observations = [], []
    groups = photo_groups(len(facts), verified, [])
    groups = [pair, *(group for group in groups if not set(group) & set(pair))]
    nothing = (np.zeros(0, np.int64), np.zeros((0, 2)))
    names = relative_names([photo.path for photo in facts])
    for index, photo in enumerate(facts):
        if index in pair:
            views.append(replace(scene.views[pair.index(index)], image=names[index]))
            observations.append(scene.sparse.observations[pair.index(index)])
            continue
        reason = why_missing(index, names, verified, groups, same, set(pair))
        K, told = intrinsics[index]
        views.append(
            View(
                names[index],
                photo.width,
                photo.height,
                K,
                told,
                NOWHERE,
                registered=False,
                reason=reason,
                orientation=photo.orientation,
            )
        )
        observations.append(nothing)
    return replace(
        scene,
        views=tuple(views),
        pairs=tuple(verified.pairs()),
        sparse=replace(scene.sparse, observations=tuple(observations)),
        components=tuple(groups) if len(groups) > 1 else (),
        notes=(*scene.notes, f"only two photos could be placed: {names[pair[0]]} and {names[pair[1]]}"),
    )
