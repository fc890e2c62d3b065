"""Photos to a scene by feature matches.

Two photos: a stereo pair (`two_view`). More photos, or known poses: features, pairs, matches, verification, structure
from motion, and multi-view stereo. Where no three photos connect, the scene is that of the best pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as memoized
from functools import cached_property
from pathlib import Path

import numpy as np

from dune_cli import console
from dune_cli.errors import JobFailed, UserError
from dune_cli.geometry.poses import inverse, subtract_world_offset, transform_points, vector_angle, world_offset
from dune_cli.io.cache import WorkFolder
from dune_cli.io.intrinsics import PhotoCamera
from dune_cli.io.outputs import scratch_folder
from dune_cli.io.photo_names import relative_names
from dune_cli.io.photos import PhotoInfo, read_photo
from dune_cli.matchers.filtering import Thumbnail
from dune_cli.matchers.matcher import CacheableMatcher, FeatureMatcher, Matcher
from dune_cli.provenance import Run, Source
from dune_cli.sfm.calibration import calibration_notes
from dune_cli.sfm.cameras import PhotoCameras, share_cameras
from dune_cli.sfm.features import FeatureStore, ImageFeatures, extract_features
from dune_cli.sfm.lens_residuals import lens_notes
from dune_cli.sfm.mapper import MappingConfig, map_photos
from dune_cli.sfm.matching import Correspondences, match_counts_text, match_pairs
from dune_cli.sfm.pairs import EXHAUSTIVE_UP_TO, STRATEGIES, PairSelection, read_pairs, select_pairs
from dune_cli.sfm.retrieval import DescriptorExtractor, vlad_descriptors
from dune_cli.sfm.scale import check_distinct_centres, same_viewpoint_notes, scale_by_baseline, scale_by_motion
from dune_cli.sfm.scene import (
    LARGE_COORDINATES_NOTE,
    Calibration,
    MaskedKeypoints,
    Observations,
    Scene,
    SfmModel,
    SparsePoints,
    View,
)
from dune_cli.sfm.verification import (
    MIN_INLIERS,
    VerifiedPairs,
    find_pure_rotations,
    rotate_disconnected_components,
    verify_pairs,
)
from dune_cli.tasks.reconstruct.config import CamerasOf, MatchesConfig
from dune_cli.tasks.reconstruct.two_view import reconstruct_matched, reconstruct_pair

SCALE_UNKNOWN = "photos do not tell lengths: the median step between cameras that moved is 1; give --baseline METRES"
SCALE_OF_POSES = "lengths are those of --poses"
NO_POSE = np.full((4, 4), np.nan)
PAIRS_TO_TRY = 3  # where no three photos connect
NAMES_IN_NOTE = 3


def reconstruct(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: Matcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder | None = None,
    descriptors: DescriptorExtractor | None = None,
    known_poses: Mapping[Path, np.ndarray] | None = None,
) -> Scene:
    """The scene of two or more photos.

    `cameras_of` gives the camera of each photo. Of more than two photos: `cache` keeps features and matches
    for the next run (None: nothing is kept); `descriptors` makes the global descriptors of pair retrieval (None:
    keypoints do); `known_poses`, photo -> `world_from_cam` (4, 4), set the world, less the scene's `world_offset` where
    coordinates are large.

    Raises JobFailed where no two photos give a scene. UserError for a matcher that cannot cache features, for pairs
    that do not fit, and for a baseline beside known poses.
    """
    if config.is_stereo_pair(paths, known_poses):
        with run.stage("read"):
            photos = [read_photo(path) for path in paths]
            cameras = cameras_of([photo.info for photo in photos])
        return reconstruct_pair(photos, cameras, matcher, config, run)
    if cache is None:
        with scratch_folder() as folder:
            cache = WorkFolder(folder)
            return reconstruct(paths, cameras_of, matcher, config, run, cache, descriptors, known_poses)
    check_distinct_centres(known_poses or {})
    if not isinstance(matcher, CacheableMatcher):
        raise UserError(f"the matcher {matcher.name} compares two photos only; give another --matcher")
    scene = _reconstruct_many(paths, cameras_of, matcher, config, run, cache, descriptors, known_poses or {})
    if config.dense is None or scene.is_dense:
        return scene
    from dune_cli.mvs.densify import densify

    return densify(scene, paths, config.dense, config.mesh, run, config.min_confidence, config.masks)


@dataclass(frozen=True)
class MatchedPhotos:
    """Photos with their `own` and shared `cameras`; `duplicates`, each with the earlier photo whose
    file it equals; their correspondences, verified pairs, and what was masked. Photos go by their index."""

    photos: Sequence[PhotoInfo]
    own: Sequence[PhotoCamera]
    cameras: PhotoCameras
    duplicates: Mapping[int, int]
    correspondences: Correspondences
    verified: VerifiedPairs
    masked: MaskedKeypoints | None = None

    @cached_property
    def names(self) -> list[str]:
        return relative_names([photo.path for photo in self.photos])


def _reconstruct_many(
    paths: Sequence[Path],
    cameras_of: CamerasOf,
    matcher: CacheableMatcher,
    config: MatchesConfig,
    run: Run,
    cache: WorkFolder,
    descriptors: DescriptorExtractor | None,
    known_poses: Mapping[Path, np.ndarray],
) -> Scene:
    """The scene of structure from motion, without dense points, or that of the best pair."""
    with run.stage("features"):
        images = extract_features(paths, matcher, cache, descriptors if uses_descriptors(len(paths), config) else None)
    matched, images = _match_photos(images, cameras_of, matcher, config, run, cache)
    known = {i: known_poses[path] for i, path in enumerate(paths) if path in known_poses}
    offset = world_offset(np.array([pose[:3, 3] for pose in known.values()]))
    known = {index: subtract_world_offset(pose, offset) for index, pose in known.items()}
    if not known:
        matched = _without_pure_rotations(matched)
    with run.stage("map", "mapping"):
        models = []
        if len(matched.verified.geometry) > 0 or len(known) > 1:
            settings = MappingConfig(config.mapper, config.seed, config.fixed_poses)
            correspondences, verified = matched.correspondences, matched.verified
            models = map_photos(correspondences, verified, matched.cameras, settings, cache.folder, known)
    models = [model for model in models if known or len(model.points_world)]
    if known and not models:
        raise JobFailed("no point is seen from two of the known poses; check that --poses are world_from_cam")
    if known or (models and len(models[0].world_from_cam) > 2):
        scene = to_scene(matched, models, matcher.source, bool(known))
        scene = _scaled(scene, config, bool(known), matched.correspondences.pixel_size)
        notes = [] if offset is None else [LARGE_COORDINATES_NOTE]
        scene = replace(scene, world_offset=offset, notes=(*scene.notes, *notes))
    else:
        scene = _best_pair_scene(matched, models, images, matcher, config, cache, run)
    if config.min_confidence > 0:
        scene = _confident_points(scene, config.min_confidence)
    notes = filter(None, [_rotation_note(images)])
    lenses = lens_notes(models[0], matched.correspondences, matched.cameras) if models else ()
    viewpoints = same_viewpoint_notes([view.image for view in scene.views], matched.correspondences)
    scene = replace(scene, notes=(*scene.notes, *notes, *viewpoints, *lenses, *calibration_notes(scene.views)))
    return scene.with_masks(matched.masked)


def _match_photos(
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
    cameras = share_cameras(own)
    with run.stage("pair"):
        selection = _select_pairs(images, duplicates, matcher, config, cache)
    console.note(f"{len(images)} photos, {len(selection.pairs)} pairs ({selection.strategy})")
    with run.stage("match"):
        correspondences, masked = _match_unmasked(images, selection, matcher, config, cache)
    thumbnail_of = memoized(lambda index: Thumbnail.of(read_photo(photos[index].path).rgb))
    with run.stage("verify"):
        verified = verify_pairs(correspondences, cameras, config.seed, thumbnail_of)
    with run.stage("rotate"):
        images = rotate_disconnected_components(
            images, selection.pairs, verified, duplicates, matcher, cache, config.seed
        )
        if note := _rotation_note(images):
            console.note(note)
            correspondences, masked = _match_unmasked(images, selection, matcher, config, cache)
            verified = verify_pairs(correspondences, cameras, config.seed, thumbnail_of)
    return MatchedPhotos(photos, own, cameras, duplicates, correspondences, verified, masked), images


def _match_unmasked(
    images: Sequence[ImageFeatures],
    selection: PairSelection,
    matcher: CacheableMatcher,
    config: MatchesConfig,
    cache: WorkFolder,
) -> tuple[Correspondences, MaskedKeypoints | None]:
    """The matches of the selected pairs, without masked ones, and what was masked."""
    correspondences = match_pairs(images, selection.pairs, matcher, cache)
    if config.masks is None:
        return correspondences, None
    return config.masks.without_masked(correspondences, [image.info.path for image in images])


def uses_descriptors(count: int, config: MatchesConfig) -> bool:
    """Whether the pairs of `count` photos are retrieved by global descriptors."""
    return config.pairs == "retrieval" or (config.pairs == "auto" and count > EXHAUSTIVE_UP_TO)


def _duplicates(photos: Sequence[PhotoInfo]) -> dict[int, int]:
    """Photos whose file equals that of an earlier one -> that one."""
    first: dict[str, int] = {}
    return {i: first[photo.sha256] for i, photo in enumerate(photos) if first.setdefault(photo.sha256, i) != i}


def _select_pairs(
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
        pairs = sorted({(min(pair), max(pair)) for pair in named if pair[0] != pair[1]})
        return PairSelection(pairs, f"from {config.pairs}")
    distinct = [index for index in range(len(images)) if index not in duplicates]
    selection = select_pairs(
        config.pairs,
        [paths[index] for index in distinct],
        config.neighbours,
        config.ordered,
        lambda: _global_descriptors([images[index] for index in distinct], matcher, cache, config.seed),
    )
    return PairSelection([(distinct[i], distinct[j]) for i, j in selection.pairs], selection.strategy)


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


def _rotation_note(images: Sequence[ImageFeatures]) -> str:
    """Which photos were rotated for matching; empty for none."""
    parts = []
    for quarter_turns in sorted({image.quarter_turns for image in images} - {0}):
        names = [image.info.path.name for image in images if image.quarter_turns == quarter_turns]
        more = f" and {len(names) - NAMES_IN_NOTE} more" if len(names) > NAMES_IN_NOTE else ""
        degrees = f"rotated clockwise by {90 * quarter_turns} degrees for matching"
        parts.append(f"{', '.join(names[:NAMES_IN_NOTE])}{more} were {degrees}")
    return "; ".join(parts)


def _without_pure_rotations(matched: MatchedPhotos) -> MatchedPhotos:
    """Without the connected components whose camera only rotated; JobFailed where no other component is left."""
    verified = matched.verified
    rotations = find_pure_rotations(matched.correspondences, verified, matched.cameras)
    if not rotations.pairs:
        return matched
    rest = {pair: geometry for pair, geometry in verified.geometry.items() if pair not in rotations.pairs}
    if not rest:
        photos = len({index for pair in rotations.pairs for index in pair})
        raise JobFailed(
            f"the camera only turned between the photos: turning it on the spot explains {rotations.explained} of "
            f"{rotations.matches} matches of the {photos} photos that connect, so depth cannot be seen; move it "
            "between photos, a step to the side of about a tenth of the distance"
        )
    return replace(matched, verified=replace(verified, geometry=rest, pure_rotations=rotations.pairs))


def to_scene(matched: MatchedPhotos, models: Sequence[SfmModel], source: Source, world_given: bool) -> Scene:
    """The scene of the largest of `models`. The world becomes the first registered camera, unless it is `world_given`,
    that of the known poses."""
    model, cameras, correspondences = models[0], matched.cameras, matched.correspondences
    registered = sorted(model.world_from_cam)
    scene_from_model = np.eye(4) if world_given else inverse(model.world_from_cam[registered[0]])
    components = connected_components(matched, models)
    views = []
    for index, own in enumerate(matched.own):
        if index not in model.world_from_cam:
            views.append(_unregistered_view(index, matched, components, registered))
            continue
        is_world = index == registered[0] and not world_given
        pose = np.eye(4) if is_world else scene_from_model @ model.world_from_cam[index]
        shared, number, calibration = cameras.of(index), cameras.ids[index], None
        camera = shared.camera if shared.fixed and shared.lens_known else model.cameras[number]
        if number in model.camera_sd:
            focal_before_px = float(np.sqrt(own.K[0, 0] * own.K[1, 1]))
            calibration = Calibration(focal_before_px, *model.camera_sd[number], model.modes[index])
            calibration = calibration.transformed(scene_from_model[:3, :3])
        photo = matched.photos[index]
        views.append(
            View(
                image=matched.names[index],
                width=photo.width,
                height=photo.height,
                K=camera.K,
                focal_source=own.source if shared.fixed else "estimated",
                world_from_cam=pose,
                lens=None if camera.model == "PINHOLE" else camera,
                orientation=photo.orientation,
                calibration=calibration,
            )
        )
    points = transform_points(scene_from_model, model.points_world)
    observations, color_sums, counts = [], np.zeros((len(points), 3)), np.zeros(len(points))
    unobserved = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for index in range(len(views)):
        point, keypoint = model.observations.get(index, unobserved)
        observations.append((point, correspondences.keypoints[index][keypoint]))
        np.add.at(color_sums, point, correspondences.colors[index][keypoint])
        np.add.at(counts, point, 1)
    sparse = SparsePoints(
        points,
        np.rint(color_sums / np.maximum(counts, 1)[:, None]).astype(np.uint8),
        (1 / (1 + (model.errors_px / correspondences.pixel_size) ** 2)).astype(np.float32),
        tuple(observations),
    )
    return Scene(
        method="matches",
        views=tuple(views),
        pairs=tuple(matched.verified.pairs()),
        sparse=sparse,
        scale="arbitrary",
        scale_note=SCALE_OF_POSES if world_given else SCALE_UNKNOWN,
        reprojection_error_px=model.error_px if len(points) else float("nan"),
        parallax_deg=_parallax_deg(points, views, observations),
        sources=(source,),
        components=tuple(components) if len(components) > 1 else (),
        world="that of --poses" if world_given else None,
    )


def _unregistered_view(
    index: int, matched: MatchedPhotos, components: Sequence[tuple[int, ...]], registered: Sequence[int]
) -> View:
    photo, own = matched.photos[index], matched.own[index]
    return View(
        image=matched.names[index],
        width=photo.width,
        height=photo.height,
        K=own.K,
        focal_source=own.source,
        world_from_cam=NO_POSE,
        lens=None if own.camera.model == "PINHOLE" else own.camera,
        registered=False,
        reason=_unregistered_reason(index, matched, components, registered),
        orientation=photo.orientation,
    )


def _unregistered_reason(
    index: int, matched: MatchedPhotos, components: Sequence[tuple[int, ...]], registered: Sequence[int]
) -> str:
    """Why a photo has no pose, in one line."""
    names, verified = matched.names, matched.verified
    if index in matched.duplicates:
        return f"it is the same picture as {names[matched.duplicates[index]]}"
    pair_with = {a if b == index else b: pair for pair in verified.counts for a, b in (pair,) if index in pair}
    if not pair_with:
        return "no match: it was compared with no other photo"
    counts = {other: verified.counts[pair] for other, pair in pair_with.items()}
    inliers = {other: count[1] for other, count in counts.items()}
    rotated = [other for other, pair in pair_with.items() if pair in verified.pure_rotations]
    if rotated:
        best = max(rotated, key=inliers.__getitem__)
        return f"the camera only turned between it and {names[best]}: no parallax"
    connected = [other for other, pair in pair_with.items() if pair in verified.geometry]
    near = [other for other in connected if other in registered]
    if near:
        best = max(near, key=inliers.__getitem__)
        return (
            f"no common tracks: {inliers[best]} matches agree with {names[best]}, but too few are points in the scene"
        )
    if connected:
        component = next((group for group in components if index in group), tuple(connected))
        others = ", ".join(names[other] for other in component if other != index)
        return f"it hangs together only with {others}, and not with the photos that were placed"
    best = max(pair_with, key=counts.__getitem__)
    static = {other: verified.static_matches.get(pair, 0) for other, pair in pair_with.items()}
    most = max(static, key=static.__getitem__)
    if static[most] > inliers[best]:
        return f"what it shares with {names[most]} lies at the same pixels of both photos (a caption, a logo, a border)"
    matches = counts[best][0]
    if matches < MIN_INLIERS:
        return f"no match: at most {matches} matches, with {names[best]}"
    return f"too few inliers: {inliers[best]} of {matches} matches with {names[best]}, the best, agree on a motion"


def connected_components(matched: MatchedPhotos, models: Sequence[SfmModel]) -> list[tuple[int, ...]]:
    """Groups of two or more photos that connect: those of the models, then the connected components of verified pairs
    that have no photo of a model."""
    components = []
    grouped: set[int] = set()
    for model in models:
        members = tuple(sorted(set(model.world_from_cam) - grouped))
        if len(members) > 1:
            components.append(members)
            grouped |= set(members)
    for component in sorted(map(tuple, matched.verified.components(len(matched.photos)))):
        if len(component) > 1 and not grouped & set(component):
            components.append(component)
    return components


def _parallax_deg(points: np.ndarray, views: Sequence[View], observations: Sequence[Observations]) -> float:
    """Median over the points of the widest angle between their first view and another one, in degrees."""
    first = np.full((len(points), 3), np.nan)
    widest = np.zeros(len(points))
    for view, (index, _) in zip(views, observations):
        rays = view.world_from_cam[:3, 3] - points[index]
        new = np.isnan(first[index, 0])
        first[index[new]] = rays[new]
        np.maximum.at(widest, index, vector_angle(first[index], rays))
    return float(np.degrees(np.median(widest))) if len(points) else 0.0


def _scaled(scene: Scene, config: MatchesConfig, world_given: bool, pixel_size: float) -> Scene:
    if not world_given:
        if config.baseline is None:
            return scale_by_motion(scene, pixel_size)
        return scale_by_baseline(scene, config.baseline, pixel_size)
    if config.baseline is not None:
        raise UserError("--poses and --baseline both set the scale; give one of them")
    return scene


def _confident_points(scene: Scene, min_confidence: float) -> Scene:
    assert scene.sparse is not None
    keep = scene.sparse.confidence >= min_confidence
    new_index = np.cumsum(keep) - 1
    sparse = replace(
        scene.sparse,
        points_world=scene.sparse.points_world[keep],
        colors=scene.sparse.colors[keep],
        confidence=scene.sparse.confidence[keep],
        observations=tuple((new_index[i[keep[i]]], pixels[keep[i]]) for i, pixels in scene.sparse.observations),
    )
    return replace(scene, sparse=sparse)


def _best_pair_scene(
    matched: MatchedPhotos,
    models: Sequence[SfmModel],
    images: Sequence[ImageFeatures],
    matcher: CacheableMatcher,
    config: MatchesConfig,
    cache: WorkFolder,
    run: Run,
) -> Scene:
    """Two-view fallback where no three photos connect: the scene of the model's pair, or of one with many inliers.

    JobFailed where no pair gives one.
    """
    photos, verified = matched.photos, matched.verified
    ranked = sorted(verified.geometry, key=lambda pair: -verified.counts[pair][1])
    if models:
        pair = tuple(sorted(models[0].world_from_cam))
        ranked = [pair, *(other for other in ranked if other != pair)]
    store = FeatureStore(matcher, cache)
    failures = []
    for pair in ranked[:PAIRS_TO_TRY]:
        decoded = [read_photo(photos[index].path) for index in pair]
        cameras = [matched.own[index] for index in pair]
        matches = matcher.match_features(*(store.load(images[index]) for index in pair))
        if config.masks is not None:
            matches, _ = config.masks.matches_without_masked(matches, [photo.path for photo in decoded])
        baseline = config.baseline if pair == (0, 1) else None
        settings = MatchesConfig(baseline=baseline, seed=config.seed, masks=config.masks)
        try:
            scene = reconstruct_matched(decoded, cameras, matches, matcher.source, settings, run)
        except JobFailed as error:
            failures.append(str(error))
            continue
        return _with_unregistered(scene, pair, matched)
    if failures:
        raise JobFailed(f"no three of the {len(photos)} photos connect, and the best pair fails: {failures[0]}")
    if verified.static_matches and not verified.geometry:
        pair = max(verified.static_matches, key=verified.static_matches.__getitem__)
        one, two = (photos[index].path.name for index in pair)
        raise JobFailed(
            f"no two of the {len(photos)} photos agree in more than what lies at the same pixels of both: {one} and "
            f"{two} have {verified.static_matches[pair]} such matches (a caption, a logo, a border or a part of the "
            "mount), which tell nothing of how the camera moved; crop it away, and take photos that overlap by half or "
            "more"
        )
    pair = max(verified.counts, key=verified.counts.__getitem__)
    one, two = (matched.names[index] for index in pair)
    raise JobFailed(
        f"no two of the {len(photos)} photos show enough of the same place: {one} and {two}, the best pair, have "
        f"{match_counts_text(*verified.counts[pair], 'a motion')}; take photos that overlap by half or more, or try "
        "another --matcher"
    )


def _with_unregistered(scene: Scene, pair: tuple[int, int], matched: MatchedPhotos) -> Scene:
    """The scene of a `pair` as one of all photos, the others unregistered."""
    assert scene.sparse is not None
    names = matched.names
    components = [pair, *(group for group in connected_components(matched, []) if not set(group) & set(pair))]
    views, observations = [], []
    for index in range(len(matched.photos)):
        if index in pair:
            views.append(replace(scene.views[pair.index(index)], image=names[index]))
            observations.append(scene.sparse.observations[pair.index(index)])
        else:
            views.append(_unregistered_view(index, matched, components, pair))
            observations.append((np.zeros(0, np.int64), np.zeros((0, 2))))
    return replace(
        scene,
        views=tuple(views),
        pairs=tuple(matched.verified.pairs()),
        sparse=replace(scene.sparse, observations=tuple(observations)),
        components=tuple(components) if len(components) > 1 else (),
        notes=(*scene.notes, f"only two photos could be placed: {names[pair[0]]} and {names[pair[1]]}"),
    )
