"""A mapped reconstruction as a scene: views in the order of the photos, reasons for those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.poses import inverse, subtract_world_offset, transform_points, vector_angle, world_offset
from dune_cli.io.cache import WorkFolder
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoFacts, read_photo
from dune_cli.io.safe_read import agreement
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import Run, Source
from dune_cli.sfm import pairs as pairing
from dune_cli.sfm import scale as lengths
from dune_cli.sfm.calibration import calibration_notes
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_features
from dune_cli.sfm.mapper import MappingConfig, map_photos
from dune_cli.sfm.matching import Correspondences, match_pairs
from dune_cli.sfm.retrieval import DescriptorExtractor, vlad_descriptors
from dune_cli.sfm.scene import LARGE_COORDINATES_NOTE, Calibration, Observations, Scene, SfmModel, SparsePoints, View
from dune_cli.sfm.verification import (
    MIN_INLIERS,
    VerifiedPairs,
    find_pure_rotations,
    rotate_disconnected_components,
    verify_pairs,
)
from dune_cli.tasks.reconstruct import two_view

NO_LENGTHS = "photos do not tell lengths: the median step between cameras that moved is 1; give --baseline METRES"

OF_POSES = "lengths are those of --poses"
NOWHERE = np.full((4, 4), np.nan)


def to_scene(
    facts: Sequence[PhotoFacts],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    cameras: PhotoCameras,
    found: Correspondences,
    verified: VerifiedPairs,
    models: Sequence[SfmModel],
    same: Mapping[int, int],
    source: Source,
    world_given: bool,
) -> Scene:
    """The scene of the largest of `models`. `same`: photos that are copies -> of which one. The world becomes the first
    placed camera, unless it is `world_given`, the known poses' own."""
    best = models[0]
    order = sorted(best.world_from_cam)
    new_from_old = np.eye(4) if world_given else inverse(best.world_from_cam[order[0]])
    groups = photo_groups(len(facts), verified, models)
    names = relative_names([photo.path for photo in facts])
    views = []
    for index, photo in enumerate(facts):
        K, told = intrinsics[index]
        radial, pose, reason, calibration = 0.0, NOWHERE, None, None
        if index in best.world_from_cam:
            pose = new_from_old @ best.world_from_cam[index] if index != order[0] or world_given else np.eye(4)
            if not cameras.of(index).fixed:
                before = float(np.sqrt(K[0, 0] * K[1, 1]))
                (K, radial), told = best.cameras[cameras.ids[index]], "estimated"
                if cameras.ids[index] in best.camera_sd:
                    calibration = Calibration(before, *best.camera_sd[cameras.ids[index]], best.modes[index])
                    calibration = calibration.transformed(new_from_old[:3, :3])
        else:
            reason = why_missing(index, names, verified, groups, same, set(order))
        name, width, height = names[index], photo.width, photo.height
        view = View(name, width, height, K, told, pose, reason is None, None, radial, reason, photo.orientation)
        views.append(replace(view, calibration=calibration))
    points = transform_points(new_from_old, best.points_world)
    observations, shades, amount = [], np.zeros((len(points), 3)), np.zeros(len(points))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for index in range(len(facts)):
        point, keypoint = best.observations.get(index, nothing)
        observations.append((point, found.keypoints[index][keypoint]))
        np.add.at(shades, point, found.colors[index][keypoint])
        np.add.at(amount, point, 1)
    sparse = SparsePoints(
        points,
        np.rint(shades / np.maximum(amount, 1)[:, None]).astype(np.uint8),
        (1 / (1 + (best.errors_px / found.pixel_size) ** 2)).astype(np.float32),
        tuple(observations),
    )
    return Scene(
        method="matches",
        views=tuple(views),
        pairs=tuple(verified.pairs()),
        sparse=sparse,
        scale="arbitrary",
        scale_note=OF_POSES if world_given else NO_LENGTHS,
        reprojection_error_px=float(np.sqrt(np.mean(best.errors_px**2))) if len(points) else float("nan"),
        parallax_deg=_parallax_deg(points, views, observations),
        sources=(source,),
        components=tuple(groups) if len(groups) > 1 else (),
        world="that of --poses" if world_given else None,
    )


def why_missing(
    index: int,
    names: Sequence[str],
    verified: VerifiedPairs,
    groups: Sequence[tuple[int, ...]],
    same: Mapping[int, int],
    placed: set[int],
) -> str:
    """Why a photo has no pose, in one line. `names` of all photos."""
    if index in same:
        return f"it is the same picture as {names[same[index]]}"
    others = {a if b == index else b: pair for pair in verified.counts for a, b in (pair,) if index in pair}
    if not others:
        return "no match: it was compared with no other photo"
    turned = [o for o, pair in others.items() if pair in verified.pure_rotations]
    if turned:
        best = max(turned, key=lambda o: verified.counts[others[o]][1])
        return f"the camera only turned between it and {names[best]}: no parallax"
    agreeing = {o: verified.counts[pair][1] for o, pair in others.items() if pair in verified.geometry}
    near = {o: inliers for o, inliers in agreeing.items() if o in placed}
    if near:
        best = max(near, key=near.__getitem__)
        return f"no common tracks: {near[best]} matches agree with {names[best]}, but too few are points in the scene"
    if agreeing:
        group = next((g for g in groups if index in g), tuple(agreeing))
        others_of = ", ".join(names[o] for o in group if o != index)
        return f"it hangs together only with {others_of}, and not with the photos that were placed"
    best = max(others, key=lambda o: verified.counts[others[o]])
    fixed = {o: verified.static_matches.get(pair, 0) for o, pair in others.items()}
    most = max(fixed, key=fixed.__getitem__)
    if fixed[most] > verified.counts[others[best]][1]:
        return f"what it shares with {names[most]} lies at the same pixels of both photos (a caption, a logo, a border)"
    matches, inliers = verified.counts[others[best]]
    if matches < MIN_INLIERS:
        return f"no match: at most {matches} matches, with {names[best]}"
    return f"too few inliers: {inliers} of {matches} matches with {names[best]}, the best, agree on a motion"


def photo_groups(count: int, verified: VerifiedPairs, models: Sequence[SfmModel]) -> list[tuple[int, ...]]:
    """Photos that hang together: those of the first model, those of the others, and what verified pairs join of the
    rest without joining it to one of these."""
    groups = []
    taken: set[int] = set()
    for model in models:
        own = tuple(sorted(set(model.world_from_cam) - taken))
        if len(own) > 1:
            groups.append(own)
            taken |= set(own)
    edges = np.array(list(verified.geometry), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    total, label = connected_components(graph, directed=False)
    for group in range(total):
        members = tuple(np.flatnonzero(label == group).tolist())
        if len(members) > 1 and not taken & set(members):
            groups.append(members)
    return groups


def _parallax_deg(points: np.ndarray, views: Sequence[View], observations: Sequence[Observations]) -> float:
    """Median over the points of the widest angle between their first view and another one, in degrees."""
    first = np.full((len(points), 3), np.nan)
    widest = np.zeros(len(points))
    for view, (index, _) in zip(views, observations):
        rays = view.world_from_cam[:3, 3] - points[index]
        fresh = np.isnan(first[index, 0])
        first[index[fresh]] = rays[fresh]
        np.maximum.at(widest, index, vector_angle(first[index], rays))
    return float(np.degrees(np.median(widest))) if len(points) else 0.0


# Where of many photos only two hang together: their scene, as `dune reconstruct` makes it of a pair.


PAIRS_TO_TRY = 3


def two_of_many(
    facts: Sequence[PhotoFacts],
    intrinsics: Sequence[tuple[np.ndarray, str]],
    verified: VerifiedPairs,
    models: Sequence[SfmModel],
    same: Mapping[int, int],
    matcher: CacheableMatcher,
    looks: Sequence[ImageFeatures],
    settings: two_view.MatchesConfig,
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
    store = FeatureStore(matcher, work)
    failures = []
    for pair in ranked[:PAIRS_TO_TRY]:
        photos = [read_photo(facts[index].path) for index in pair]
        matches = matcher.match_features(*(store.load(looks[index]) for index in pair))
        own = settings if pair == (0, 1) else replace(settings, baseline=None)
        try:
            scene = two_view.reconstruct_matched(
                photos, [intrinsics[index] for index in pair], matches, matcher.source, own, run
            )
        except JobFailed as error:
            failures.append(str(error))
            continue
        return _among(scene, pair, facts, intrinsics, verified, same)
    if failures:
        raise JobFailed(f"no three of the {len(facts)} photos hang together, and the best pair fails: {failures[0]}")
    if verified.static_matches and not verified.geometry:
        pair = max(verified.static_matches, key=lambda pair: verified.static_matches[pair])
        one, two = (facts[index].path.name for index in pair)
        raise JobFailed(
            f"no two of the {len(facts)} photos agree in more than what lies at the same pixels of both: {one} and "
            f"{two} have {verified.static_matches[pair]} such matches (a caption, a logo, a border or a part of the "
            "mount), which tell nothing of how the camera moved; crop it away, and take photos that overlap by half or "
            "more"
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
    verified: VerifiedPairs,
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


# N photos to a scene by matches: chosen pairs, verified matches, structure from motion. Dense points come later.


Intrinsics = Sequence[tuple[np.ndarray, str]]


@dataclass(frozen=True)
class ManyConfig:
    """`pairs` auto | retrieval | sequential | all, or a file; `neighbours` of a photo; `mapper` incremental | global.
    `fixed_poses`: known poses stay as they are, else their positions are priors. `baseline` between the first two
    photos in metres, where it is known. `min_confidence` of points in [0, 1]. `ordered`: whether the photos follow one
    another, as a video's frames do. `seed` of every random choice."""

    pairs: str = "auto"
    neighbours: int = pairing.NEIGHBOURS
    mapper: str = "incremental"
    fixed_poses: bool = True
    baseline: float | None = None
    min_confidence: float = 0.0
    ordered: bool = False
    seed: int = 0


def reconstruct(
    paths: Sequence[Path],
    intrinsics_of: Callable[[Sequence[PhotoFacts]], Intrinsics],
    matcher: Matcher,
    config: ManyConfig,
    work: WorkFolder,
    run: Run,
    describer: DescriptorExtractor | None = None,
    known_poses: Mapping[Path, np.ndarray] | None = None,
) -> Scene:
    """The scene of three or more photos, without dense points.

    `intrinsics_of` gives (K, source) of each; `describer` makes the global descriptors where pairs are retrieved
    (without one, keypoints do); `known_poses`: photo -> `world_from_cam` (4, 4), in whose world the scene is, less its
    `world_offset` where coordinates are large. Raises JobFailed where no two photos
    give a scene, UserError for matchers that cannot share their work and pairs that do not fit.
    """
    lengths.check_distinct_centres(known_poses or {})
    if not isinstance(matcher, CacheableMatcher):
        raise UserError(f"the matcher {matcher.name} compares two photos only; give another --matcher")
    wants = wants_descriptors(len(paths), config)
    with run.stage("look"):
        looks = extract_features(paths, matcher, work, describer if wants else None)
    same = _same_photos([look.facts for look in looks])
    own = [index for index in range(len(looks)) if index not in same]
    if len(own) == 1:
        raise JobFailed(f"all {len(looks)} photos are the same picture; take photos from different places")
    facts = [look.facts for look in looks]
    intrinsics = intrinsics_of(facts)
    cameras = share_cameras(facts, intrinsics)
    with run.stage("pair"):
        plan = _plan(looks, own, same, matcher, config, work)
    console.note(f"{len(looks)} photos, {len(plan.pairs)} pairs ({plan.strategy})")
    with run.stage("match"):
        found = match_pairs(looks, plan.pairs, matcher, work)
    with run.stage("verify"):
        thumbnails = _Thumbnails(paths)
        verified = verify_pairs(found, cameras, config.seed, thumbnails.of)
    with run.stage("turn"):
        turned = rotate_disconnected_components(looks, plan.pairs, verified, same, matcher, work, config.seed)
        told = _told_turns(turned)
        if told:
            looks = turned
            console.note(told)
            found = match_pairs(looks, plan.pairs, matcher, work)
            verified = verify_pairs(found, cameras, config.seed, thumbnails.of)
    known = {i: known_poses[path] for i, path in enumerate(paths) if known_poses and path in known_poses}
    offset = world_offset(np.array([pose[:3, 3] for pose in known.values()]))
    known = {index: subtract_world_offset(pose, offset) for index, pose in known.items()}
    if not known:
        verified = _without_turned(found, verified, cameras)
    with run.stage("map", "mapping"):
        settings = MappingConfig(config.mapper, config.seed, config.fixed_poses)
        enough = len(verified.geometry) > 0 or len(known) > 1
        models = map_photos(found, verified, cameras, settings, work.folder, known) if enough else []
    models = [model for model in models if known or len(model.points_world)]
    if known or (models and len(models[0].world_from_cam) > 2):
        if not models:
            raise JobFailed("no point is seen from two of the known poses; check that --poses are world_from_cam")
        scene = to_scene(facts, intrinsics, cameras, found, verified, models, same, matcher.source, bool(known))
        scene = replace(_scaled(scene, config, bool(known), found.pixel_size), world_offset=offset)
        if offset is not None:
            scene = replace(scene, notes=(*scene.notes, LARGE_COORDINATES_NOTE))
    else:
        pair = two_view.MatchesConfig(baseline=config.baseline, seed=config.seed)
        scene = two_of_many(facts, intrinsics, verified, models, same, matcher, looks, pair, work, run)
    if config.min_confidence > 0:
        scene = _confident(scene, config.min_confidence)
    if told:
        scene = replace(scene, notes=(*scene.notes, told))
    standing = lengths.same_viewpoint_notes([view.image for view in scene.views], found)
    return replace(scene, notes=(*scene.notes, *standing, *calibration_notes(scene.views)))


class _Thumbnails:
    """Small grey copies of photos, each made when it is first needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._made = paths, dict[int, Thumbnail]()

    def of(self, index: int) -> Thumbnail:
        if index not in self._made:
            self._made[index] = Thumbnail.of(read_photo(self._paths[index]).rgb)
        return self._made[index]


def _told_turns(looks: Sequence[ImageFeatures]) -> str:
    """Which photos were matched in turned copies; empty for none."""
    parts = []
    for turns in sorted({look.quarter_turns for look in looks} - {0}):
        names = [look.facts.path.name for look in looks if look.quarter_turns == turns]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[:3])}{more} were turned clockwise by {90 * turns} degrees to be matched")
    return "; ".join(parts)


def _without_turned(
    found: Correspondences,
    verified: VerifiedPairs,
    cameras: PhotoCameras,
) -> VerifiedPairs:
    """Without the groups of photos whose camera only turned; JobFailed where no other group is left."""
    turned = find_pure_rotations(found, verified, cameras)
    if not turned.pairs:
        return verified
    rest = {pair: geometry for pair, geometry in verified.geometry.items() if pair not in turned.pairs}
    if not rest:
        photos = len({index for pair in turned.pairs for index in pair})
        raise JobFailed(
            f"the camera only turned between the photos: turning it on the spot explains {turned.explained} of "
            f"{turned.matches} matches of the {photos} photos that hang together, so depth cannot be seen; move it "
            "between photos, a step to the side of about a tenth of the distance"
        )
    return replace(verified, geometry=rest, pure_rotations=turned.pairs)


def wants_descriptors(count: int, config: ManyConfig) -> bool:
    """Whether photos are to be compared by global descriptors."""
    return config.pairs == "retrieval" or (config.pairs == "auto" and count > pairing.EXHAUSTIVE_UP_TO)


def _plan(
    looks: Sequence[ImageFeatures],
    own: Sequence[int],
    same: Mapping[int, int],
    matcher: Matcher,
    config: ManyConfig,
    work: WorkFolder,
) -> pairing.PairSelection:
    """Pairs of the photos that are no copies (`own`); a pair of a user's list that names a copy means the first."""
    paths = [look.facts.path for look in looks]
    if config.pairs not in pairing.STRATEGIES:
        named = [(same.get(i, i), same.get(j, j)) for i, j in pairing.read_pairs(config.pairs, paths)]
        pairs = sorted({(min(pair), max(pair)) for pair in named if pair[0] != pair[1]})
        return pairing.PairSelection(pairs, f"from {config.pairs}")
    plan = pairing.select_pairs(
        config.pairs,
        [paths[index] for index in own],
        config.neighbours,
        config.ordered,
        lambda: _descriptors([looks[index] for index in own], matcher, work, config.seed),
    )
    return pairing.PairSelection([(own[i], own[j]) for i, j in plan.pairs], plan.strategy)


def _descriptors(looks: Sequence[ImageFeatures], matcher: Matcher, work: WorkFolder, seed: int) -> np.ndarray:
    rows = [look.descriptor for look in looks if look.descriptor is not None]
    if len(rows) == len(looks):
        return np.stack(rows)
    if not isinstance(matcher, FeatureMatcher):
        raise UserError(
            f"{len(looks)} photos need an encoder to choose pairs, and the matcher {matcher.name} has no keypoints to "
            "do it with; name one with --retrieval-model, or give --pairs sequential, all or a file"
        )
    store = FeatureStore(matcher, work)
    return vlad_descriptors(len(looks), lambda i: store.descriptors(looks[i]), seed)


def _same_photos(facts: Sequence[PhotoFacts]) -> dict[int, int]:
    """Photos whose file is that of an earlier one -> that one."""
    first: dict[str, int] = {}
    return {i: first[photo.sha256] for i, photo in enumerate(facts) if first.setdefault(photo.sha256, i) != i}


def _scaled(scene: Scene, config: ManyConfig, poses_given: bool, pixel_size: float) -> Scene:
    if poses_given:
        if config.baseline is not None:
            raise UserError("--poses and --baseline both say how long things are; give one of them")
        return scene
    if config.baseline is None:
        return lengths.scale_by_motion(scene, pixel_size)
    return lengths.scale_by_baseline(scene, config.baseline, pixel_size)


def _confident(scene: Scene, minimum: float) -> Scene:
    assert scene.sparse is not None
    keep = scene.sparse.confidence >= minimum
    place = np.cumsum(keep) - 1
    observations = tuple((place[i[keep[i]]], pixels[keep[i]]) for i, pixels in scene.sparse.observations)
    sparse = replace(
        scene.sparse,
        points_world=scene.sparse.points_world[keep],
        colors=scene.sparse.colors[keep],
        confidence=scene.sparse.confidence[keep],
        observations=observations,
    )
    return replace(scene, sparse=sparse)
